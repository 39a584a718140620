"""The report is one file that needs nothing else, shows what it was given, and claims no more than the errors allow."""

import dataclasses
import re
import struct
import xml.etree.ElementTree as ET
import zlib

import numpy as np
import pytest
import torch

from fewstep import solvers, times
from fewstep.errors import ArgumentError
from fewstep.noise import EDM, Flow
from fewstep.progress import Event, PlainReport, shown
from fewstep.report import figures, images, page, style
from fewstep.report import samples as pictures
from fewstep.report.figures import Candidate, Series
from fewstep.report.page import Cost, Entry, Page
from fewstep.words import seconds_in_words, with_error


def table(n=5, name="dpmpp_2m", noise=None, grid=times.karras):
    noise = noise or EDM()
    return solvers.get(name)(grid(noise, n)).tabulate(noise)


def decode(png: bytes) -> np.ndarray:
    """An independent reader of the PNG files that we write (filter 0, 8 bits)."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, data, header = 8, b"", ()
    while at < len(png):
        (length,), kind = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        body = png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        header = struct.unpack(">IIBBBBB", body) if kind == b"IHDR" else header
        data += body if kind == b"IDAT" else b""
        at += 12 + length
    width, height, _, colour = header[:4]
    channels = {0: 1, 2: 3, 6: 4}[colour]
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width * channels)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, channels)


def texts(figure) -> str:
    return " ".join(t.get_text() for t in figure.findobj(lambda o: hasattr(o, "get_text")))


# ------------------------------------------------------------------------------------------------------- pictures
def test_png_reads_back():
    for channels in (1, 3, 4):
        pixels = np.random.default_rng(channels).integers(0, 256, (7, 11, channels), np.uint8)
        assert np.array_equal(decode(images.png(pixels)), pixels)
    with pytest.raises(ArgumentError, match="give uint8"):
        images.png(np.zeros((4, 4, 2), np.uint8))


def test_grid_puts_every_sample_in_its_place():
    samples = torch.arange(7.0)[:, None, None, None].expand(7, 1, 4, 6) / 7 * 2 - 1
    grid = images.image_grid(samples, columns=3, gap=2, scale=2)
    assert grid.shape == (3 * 10 - 2, 3 * 14 - 2, 1)
    for k in range(7):
        top, left = k // 3 * 10, k % 3 * 14
        assert (grid[top : top + 8, left : left + 12] == round(k / 7 * 255)).all()
    assert (grid[8:10] == images.PAPER).all()  # the gap
    assert (grid[20:, 14:] == images.PAPER).all()  # empty cells


def test_pixels_are_clamped_latents_are_stretched_videos_show_a_frame():
    assert images.to_bytes(torch.tensor([[-3.0, -1.0, 1.0, 9.0]] * 4)[None, None])[0, 0, :, 0].tolist() == [
        0,
        0,
        255,
        255,
    ]
    latents = images.to_bytes(torch.randn(2, 4, 8, 8) * 30)
    assert latents.shape == (2, 8, 8, 3)
    assert latents.min() == 0 and latents.max() == 255
    video = torch.stack([torch.full((1, 8, 8), v) for v in (-1.0, 1.0, -1.0)], 1)[None]
    assert (images.to_bytes(video) == 255).all()
    with pytest.raises(ArgumentError, match="cloud_figure"):
        images.to_bytes(torch.zeros(3, 2))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 16), (2,), (1,)])
def test_samples_of_any_shape_become_a_picture(tmp_path, shape):
    path = pictures.write(tmp_path / "x.png", torch.randn(12, *shape))
    assert path.read_bytes()[:4] == b"\x89PNG"
    kept = torch.randn(3, *shape)
    assert torch.equal(torch.from_numpy(np.load(pictures.write(tmp_path / "x.npy", kept))), kept)
    with pytest.raises(ArgumentError, match=r"end it in \.png"):
        pictures.write(tmp_path / "x.jpg", kept)
    both = pictures.side_by_side([("one", kept), ("two", kept)], roles=["before", "after"])
    assert {"one", "two"} <= {a.get_title(loc="left") for a in both.axes}


# -------------------------------------------------------------------------------------------------------- figures
@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "sde_dpmpp_2m", "unipc"])
def test_table_figure_shows_every_weight(name):
    t = table(4, name)
    drawn = texts(figures.tableau_figure(t))
    flat = t.unrolled()
    for weight in flat.B[1:].flatten().tolist():
        if abs(weight) > 5e-4:
            assert f"{abs(weight):.3g}"[:4] in drawn.replace("\N{MINUS SIGN}", "")
    assert drawn.count("sample") >= 1
    assert ("noise" in drawn) == (name == "sde_dpmpp_2m")


def test_large_tables_are_drawn_without_numbers():
    drawn = figures.tableau_figure(table(40))
    assert sum(len(axis.texts) for axis in drawn.axes) == 0


def test_per_element_tables_are_refused():
    t = table(3)
    with pytest.raises(ArgumentError, match="draw one element"):
        figures.tableau_figure(dataclasses.replace(t, B=t.B[..., None].expand(*t.B.shape, 2)))


def test_times_figure_places_calls_by_log_snr():
    one, two = table(4), table(6, grid=times.logsnr)
    drawn = figures.times_figure([("one", one), ("two", two)], roles=["before", "after"])
    dots = [line.get_xdata() for line in drawn.axes[0].lines if line.get_marker() == "o"]
    for line, t in zip(dots, (one, two), strict=True):
        np.testing.assert_allclose(line, EDM().lam(t.times[:-1]).numpy(), rtol=0, atol=1e-12)
    figures.times_figure([("flow", table(3, "euler", Flow(), times.uniform))])  # alpha = 0 at the start
    with pytest.raises(ArgumentError, match="no noise schedule"):
        figures.times_figure([("x", dataclasses.replace(one, noise=None))])


def test_quality_labels_never_cover_each_other():
    lines = [Series(f"line {k}", (4.0, 6.0), (9.0, 5.0 + 1e-3 * k), (0.1, None)) for k in range(9)]
    drawn = figures.quality_figure(lines, judge="FD")
    at = sorted(t.xy[1] for t in drawn.axes[0].texts)
    assert len(at) == 9
    assert min(np.diff(at)) > 0.02
    assert max(at) <= 1.0 + 1e-9


def test_teacher_is_a_level_and_one_point_is_named_beside_it():
    drawn = figures.quality_figure(
        [Series("t", (50.0,), (2.0,), role="teacher"), Series("a", (6.0,), (3.0,), (0.2,), "after")], judge="FD"
    )
    axis = drawn.axes[0]
    assert axis.get_xticks().tolist() == [6.0]
    assert next(t for t in axis.texts if t.get_text() == "a").xy == (6.0, 3.0)


def test_scores_figure_shows_both_scores_of_the_winner():
    drawn = figures.scores_figure(
        [Candidate("w", 3.0, 3.4, 0.1, "after"), Candidate("b", 4.0, None, None, "before")], judge="FD"
    )
    seen = {round(float(x), 6) for line in drawn.axes[0].lines for x in np.atleast_1d(line.get_xdata())}
    assert {3.0, 3.4, 4.0} <= seen


@pytest.mark.parametrize(
    "draw", [figures.times_figure, lambda e: figures.scores_figure(e, judge=""), figures.cloud_figure]
)
def test_nothing_to_draw_is_an_error(draw):
    with pytest.raises(ArgumentError, match="is empty; give at least one"):
        draw([])


def test_svg_stands_alone_and_ids_differ_between_figures():
    one, two = (style.svg(figures.tableau_figure(table(n))) for n in (3, 4))
    for text in (one, two):
        ET.fromstring(text)  # well formed
        ids = set(re.findall(r'\bid="([^"]+)"', text))
        assert {ref for ref in re.findall(r'(?:href="#|url\(#)([^")]+)', text)} <= ids
        assert "<metadata" not in text
    assert not set(re.findall(r'\bid="([^"]+)"', one)) & set(re.findall(r'\bid="([^"]+)"', two))


def test_drawing_leaves_matplotlib_as_it_was():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    style.png_of(figures.tableau_figure(table(3)))
    assert dict(mpl.rcParams) == before


# ----------------------------------------------------------------------------------------------------------- page
def whole_page(**changes) -> Page:
    made = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    entries = (
        Entry("best <hand>", "before", 5, table(5), made, 12.0, 0.3, "karras", {"RMS": (0.2, 0.01)}),
        Entry("found", "after", 5, table(5, grid=times.logsnr), made, 9.0, 0.2, "ays", {"RMS": (0.1, 0.01)}),
        Entry("teacher", "teacher", 20, table(20), made),
    )
    values = {
        "entries": entries, "series": [Series("found", (5.0, 7.0), (9.0, 6.0), (0.2, 0.2), "after")],
        "candidates": [Candidate("a", 8.5, 9.0, 0.2, "after")], "trials": [["candidate", "64"], ["a", "8.5"]],
        "costs": [Cost("race", 1200, 3.0), Cost("report", 800, 9.0)], "facts": {"seeds": "ReportSeeds(8)"},
    }  # fmt: skip
    return Page(changes.pop("model", "mnist"), 5, "ays", "Fréchet distance, 8 samples", **(values | changes))


def test_the_page_is_self_contained():
    text = page.html(whole_page())
    assert "<script" not in text
    assert "@import" not in text
    for address in re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', text):
        assert address.startswith(("data:", "#")), address
    assert not re.search(r"url\(\s*['\"]?(?!#)", text)
    assert not re.search(r"https?://(?!www\.w3\.org)", text)


def test_the_page_holds_every_part():
    text = page.html(whole_page())
    for title in (
        "Samples",
        "Quality against",
        "Times",
        "The table",
        "Candidates",
        "Other judges",
        "Cost",
        "Use it",
        "How it was made",
    ):
        assert f"<h2>{title}" in text
    assert text.count("<svg") == 4
    assert text.count("<img alt=") == 3
    assert "2,000" in text  # the sum of the calls
    assert "best &lt;hand&gt;" in text
    assert "fewstep export schedule.json" in text
    assert 'fs.Tableau.load("schedule.json")' in text


def test_what_the_page_tells_to_run_is_whole():
    text = page.html(whole_page(classes=10, schedule_file="my runs/schedule.json", model="mnist?guidance=2"))
    assert "import torch\nimport fewstep as fs" in text
    assert "condition=torch.arange(64) % 10" in text
    assert "Sample k has class k modulo 10" in text
    assert "fewstep show 'my runs/schedule.json'" in text
    assert "fewstep compare 'mnist?guidance=2' --nfe 5" in text
    assert 'fs.load("mnist?guidance=2")' in text


def test_vectors_are_drawn_as_points():
    entries = [dataclasses.replace(e, samples=torch.randn(50, 2)) for e in whole_page().entries]
    text = page.html(whole_page(entries=entries))
    assert "<img" not in text
    assert text.count("<svg") == 5


def test_empty_parts_are_left_out():
    text = page.html(Page("m", 3, "dmn", "", ()))
    assert [part for part in ("Samples", "Cost", "Candidates", "Times") if f"<h2>{part}" in text] == []
    assert "Use it" in text


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ((12.0, 0.3), (9.0, 0.2), "25% lower (better) on fresh seeds, outside the error bars"),
        ((9.0, 0.2), (12.0, 0.3), "33% higher (worse)"),
        ((9.3, 0.2), (9.0, 0.2), "no gain can be shown"),
        ((9.3, None), (9.0, None), "no error bars are known"),
        ((None, None), (None, None), "look at the samples"),
    ],
)
def test_the_verdict_claims_only_what_the_errors_allow(before, after, says):
    entries = [
        Entry("b", "before", 5, score=before[0], error=before[1]),
        Entry("a", "after", 5, score=after[0], error=after[1]),
    ]
    assert says in page.verdict(*entries)


def test_numbers_in_words():
    assert with_error(12.3456, 0.0412) == "12.346 ± 0.041"
    assert with_error(1234.5, 41.2) == "1234 ± 41"
    assert with_error(0.5) == "0.5"
    assert with_error(float("nan"), 0.1) == with_error(None) == "n/a"
    assert [seconds_in_words(s) for s in (7.4, 200, 7500)] == ["7 s", "3 min 20 s", "2 h 5 min"]


# ------------------------------------------------------------------------------------------------------- progress
class Written:
    def __init__(self):
        self.lines = []

    def write(self, text):
        self.lines += [text] if text.strip() else []

    def flush(self):
        pass

    def isatty(self):
        return False


def test_plain_progress_is_rare_and_tells_the_time_left():
    clock = iter([0.0, 1.0, 2.0, 10.0, 11.0, 12.0, 16.0])
    out = Written()
    report = PlainReport(out, every=5.0, clock=lambda: next(clock))
    for done in (0, 1, 2, 50):
        report(Event("race", done, 100, "1.23 karras"))
    report(Event("other", 1, 2))
    report(Event("race", 50, 100))  # entered again: the pace counts from here
    report(Event("race", 75, 100))
    assert [line.split()[0] for line in out.lines] == ["race", "race", "other", "race"]
    assert "50 %" in out.lines[1] and "10 s left" in out.lines[1] and "best 1.23 karras" in out.lines[1]


def test_off_a_terminal_lines_are_plain_and_quiet_is_silent():
    out = Written()
    with shown(stream=out) as report:
        report(Event("a", 1, 1))
    assert out.lines == ["a  100 %"]
    with shown(stream=out, quiet=True) as report:
        report(Event("a", 1, 1))
    assert len(out.lines) == 1


def test_on_a_terminal_there_is_a_bar_with_the_best_so_far():
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with shown(stream=out) as report:
        report(Event("race", 3, 10, "1.5 karras"))
        report(Event("race", 10, 10, "1.4 logsnr"))
    assert "race" in out.getvalue()
    assert "1.4 logsnr" in out.getvalue()
