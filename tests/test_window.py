"""Searches that begin below the noisiest time, end above zero, take many steps, have no teacher, or odd shapes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep import problems, solvers, times
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError, TimesError
from fewstep.guidance import guided
from fewstep.models import load
from fewstep.noise import EDM, Discrete, Flow, VPLinear
from fewstep.optimizing import optimize
from fewstep.report.found import page_of
from fewstep.sampling import sample
from fewstep.search.cache import Cache, Probe
from fewstep.search.klub import Gram, ratio_grid
from fewstep.search.methods import AYS, LOSS, MANY, sources
from fewstep.search.parts import PARTS
from fewstep.search.plan import default_calls, plan
from fewstep.search.teacher import Teacher, reference_schedule
from fewstep.search.window import Window
from tests.test_optimize import BUDGET, counted, off_the_modes

NOISE = EDM()


# ------------------------------------------------------------------------------------------------------------- window
@pytest.mark.parametrize("noise", [EDM(0.05, 12.0), VPLinear(), Flow(shift=3.0), Discrete.scaled_linear()])
def test_a_window_in_every_schedule(noise: object) -> None:
    whole = Window.checked(noise, None, "zero")
    assert whole.whole and whole.first == noise.t_max and whole.last == noise.t_clean
    assert torch.equal(whole.levels(24), ratio_grid(noise, 24))  # tables that were kept stay valid
    assert Window.checked(noise, noise.t_max, noise.t_clean) == whole
    middle = noise.t_min + 0.5 * (noise.t_max - noise.t_min)
    part = Window.checked(noise, middle, "min")
    assert not part.to_zero and part.last == noise.t_min and not part.whole
    levels = part.levels(9)
    assert levels[-1].item() == noise.ratio(middle).item() and levels[0].item() == noise.ratio(noise.t_min).item()
    assert "image-to-image" in part.words and part.record()["image_to_image"]
    (source,) = sources(part, "dpmpp_2m", 5)
    for candidate in [*source.hand(), *source.dmn(1)]:
        grid = candidate.schedule.times
        assert grid[0].item() == middle and grid[-1].item() == noise.t_min and candidate.tableau.nfe == 5
    reference = reference_schedule(noise, 20, **part.ends).tabulate(noise)
    assert reference.times[0].item() == middle and reference.nfe == 20


def test_strength_is_a_part_of_the_training_time() -> None:
    assert Window.start_of(VPLinear(), 1.0) == 1.0
    assert Window.start_of(Discrete.scaled_linear(), 0.5) == pytest.approx(499.5)
    with pytest.raises(ArgumentError, match="noise level in"):
        Window.start_of(EDM(), 0.5)
    with pytest.raises(ArgumentError, match="above 0"):
        Window.start_of(Flow(), 0.0)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"start": 100.0}, r"start is 100, and the network's range is \[0.002, 80\]: give a time above 0.002"),
        ({"start": 0.001}, "start is 0.001"),
        ({"start": float("nan")}, "start is nan"),
        ({"end": 90.0}, "end is 90, outside the network's range.*give a time inside it"),
        ({"end": -1.0}, "end is -1"),
        ({"end": "append"}, "end is 'append': give"),
        ({"start": 1.0, "end": 2.0}, "start is 1"),
        ({"teacher_calls": -1}, "teacher_calls is -1: give"),
        ({"teacher_calls": 0}, "nothing judges without a teacher.*give judge="),
        ({"teacher_calls": 0, "objective": off_the_modes}, "no clean data.*give data="),
    ],
    ids=range(10),
)
def test_ends_are_refused_before_any_work(options: dict, said: str) -> None:
    inner = counted()
    net = Denoiser(lambda x, t, c: inner(x, t, None), noise=NOISE, shape=(2,), fingerprint="unknown")
    with pytest.raises(ArgumentError, match=said) as refused:
        optimize(net, 4, "ays", **options)
    assert net.calls == inner.seen == 0
    assert isinstance(refused.value, TimesError) or "end" not in options or isinstance(options["end"], str)


# ----------------------------------------------------------------------------------------------------- image-to-image
def test_image_to_image(tmp_path: Path) -> None:
    """Everything begins at the start, with images of the data by seed: any batch gives the same result."""
    found = optimize(counted(), 3, "ays", objective="teacher", teacher_calls=20, start=1.5, end="min",
                     max_calls=2 * BUDGET, out=tmp_path)  # fmt: skip
    grids = [record["times"] for record in found.candidates]
    assert all(grid[0] == 1.5 and grid[-1] == 0.002 for grid in grids)
    assert {record["method"] for record in found.candidates} == {"hand", LOSS, AYS}
    assert found.window["start"] == 1.5 and found.window["end"] == "min" and found.window["image_to_image"]
    text = " ".join(found.notes)
    assert "Image-to-image: the samples start from exact samples of the problem" in text
    assert "from time 1.5 (sigma/alpha 1.5) to time 0.002" in text and found.tableau.meta["window"] == found.window
    facts = page_of(found, samples={}).facts
    assert facts["from"] == "image-to-image from time 1.5 (sigma/alpha 1.5)" and facts["to"].startswith("time 0.002")
    assert found.selection["after"] <= found.selection["before"]
    # The last score by hand: images, noise and teacher of the finals' seeds.
    net, problem = counted(), counted().fn.__self__
    images = problem.sample(1024, seed=1)
    count, first = found.selection["samples"], found.plan["counts"][-1]
    seeds = range(2_000_000_000 + first, 2_000_000_000 + first + count)
    init = images[[s % 512 for s in seeds]]
    table = reference_schedule(NOISE, 20, start=1.5, end="min").tabulate(NOISE)
    made, reference = (sample(net, t, seeds=seeds, init=init) for t in (found.tableau, table))
    gap = (made - reference).double().square().mean().sqrt().item()
    assert gap == pytest.approx(found.selection["after"], rel=1e-4)


def test_image_to_image_starts_from_made_images_and_keeps_their_conditions() -> None:
    seen: list[Tensor] = []

    def fn(x: Tensor, t: object, label: Tensor) -> Tensor:
        seen.append(label)
        mean = label.to(x)[:, None]
        return mean + (x - mean) * 0.04 / (0.04 + float(t) ** 2)

    net = Denoiser(fn, noise=NOISE, shape=(2,), fingerprint="labels")
    data = torch.tensor([[5.0, 5.0]]).repeat(40, 1) + 0.2 * torch.randn(
        40, 2, generator=torch.Generator().manual_seed(0)
    )
    options = {"objective": off_the_modes, "max_calls": BUDGET, "start": 2.0}
    made = optimize(net, 2, "dmn", condition=torch.tensor([1.0, 2.0]), **options)
    assert any("the teacher made" in note for note in made.notes) and {float(v) for s in seen for v in s} == {1.0, 2.0}
    seen.clear()
    optimize(Denoiser(fn, noise=NOISE, shape=(2,), fingerprint="labels"), 2, "dmn", data=data,
             data_condition=torch.full((40,), 5.0), **options)  # fmt: skip
    assert {float(v) for s in seen for v in s} == {5.0}


def test_a_clipped_range() -> None:
    problem = problems.Gaussian(0.0, 0.25, shape=(2,), noise=EDM(0.05, 10.0))
    found = optimize(problem.denoiser(), 3, "ays", objective=off_the_modes, max_calls=BUDGET)
    assert found.tableau.times[0] == 10 and found.window["words"] == "noise alone (sigma/alpha 10) to sigma 0"
    assert all(record["times"][-2] > 0.05 for record in found.candidates)


# ---------------------------------------------------------------------------------------------------------- many steps
def test_many_steps_also_take_the_hierarchy() -> None:
    window = Window(NOISE)
    (source,) = sources(window, "ddim", 20)
    assert source.steps >= MANY
    gram = Gram.compute(counted(), counted().fn.__self__.sample(16, seed=1), ratios=ratio_grid(NOISE, 16))
    starts = [c for c in source.hand() if c.origin == "karras"]
    before = gram.calls
    source.descend(gram, starts)
    vias = {via for _, via in source.ways}
    assert vias == {"direct", "10 steps refined to 20"} and gram.calls == before
    entered = list(source.thinned([c.origin for c in starts], 5))
    refined = [c for c in entered if c.about.get("via")]
    assert refined and all(c.tableau.nfe == 20 for c in entered)
    assert all("10 steps refined to 20" in c.origin for c in refined)
    assert [c.about["via"] for c in source.around(refined[0])] == ["10 steps refined to 20"] * len(
        list(source.around(refined[0]))
    )


@pytest.mark.parametrize("nfe", [4, 10, 14, 20, 30])
@pytest.mark.parametrize("method", ["ays", "grids", "dmn"])
def test_frechet_distances_are_of_enough_images(nfe: int, method: str) -> None:
    p = plan(default_calls(nfe), nfe=nfe, parts=PARTS[method], most_paths=1000, fewest=40)
    old = plan(default_calls(nfe), nfe=nfe, parts=PARTS[method], most_paths=1000)
    assert p.total <= default_calls(nfe) and p.counts[0] >= old.counts[0]
    assert p.counts[0] >= (40 if nfe <= 20 else 20) and p.rooms[0] >= 13
    if nfe <= 10:
        assert p == old


# ------------------------------------------------------------------------------------------------- shapes and networks
@pytest.mark.parametrize(
    "noise",
    [Flow(shift=3.0), *(pytest.param(n, marks=pytest.mark.slow) for n in (EDM(), Discrete.scaled_linear()))],
    ids=lambda n: n.family,
)
def test_video_shape(noise: object) -> None:
    problem = problems.Gaussian(0.1, 0.25, shape=(2, 3, 4, 4), noise=noise)
    found = optimize(problem.denoiser(), 3, "ays", max_calls=2 * BUDGET, teacher_calls=12)
    assert found.selection["after"] <= found.selection["before"] and found.tableau.nfe == 3
    assert any("KLUB table" in note for note in found.notes)
    assert sample(problem.denoiser(), found.tableau, seeds=range(2)).shape == (2, 2, 3, 4, 4)


def test_guidance_goes_the_whole_way(tmp_path: Path) -> None:
    """By name: the table is of the guided network, every call counts twice, and the record says so."""
    net = load("problem:images_8x8?guidance=3")
    labels = torch.arange(10)
    options = {"condition": labels, "max_calls": 16_000, "out": tmp_path, "method": "ays"}
    found = optimize("problem:images_8x8?guidance=3", 2, objective=lambda x: x.flatten(1).square().mean(1),
                     **options, **labelled(net))  # fmt: skip
    assert found.tableau.meta["batch_cost"] == 2 and found.plan["image_cost"] == 4
    assert found.tableau.meta["fingerprint"] == net.fingerprint != load("problem:images_8x8").fingerprint
    assert found.calls <= found.plan["max_calls"] and found.model == "problem:images_8x8?guidance=3"
    data = labelled(net)
    paths = found.plan["paths"]
    kept = [Cache(tmp_path / ".cache").read(p.stem) for p in (tmp_path / ".cache").glob("gram-*")]
    assert len(kept) == 1 and kept[0] is not None
    expected = Gram.compute(
        guided(load("problem:images_8x8"), 3.0), data["data"][:paths], condition=data["data_condition"][:paths],
        ratios=ratio_grid(net.noise, found.plan["levels"]), batch_size=64,
    )  # fmt: skip
    assert torch.equal(kept[0][0]["blocks"], expected.blocks)
    (stage,) = [s for s in found.stages if s["stage"] == "KLUB table"]
    assert stage["calls"] == 2 * paths * found.plan["levels"]


def labelled(net: Denoiser) -> dict:
    problem = load("problem:images_8x8").fn.__self__
    labels = torch.arange(64) % 10
    return {"data": problem.sample(64, seed=3, condition=labels), "data_condition": labels}


def test_without_a_teacher() -> None:
    net = counted()
    found = optimize(net, 3, "ays", objective=off_the_modes, teacher_calls=0, max_calls=BUDGET)
    assert not any("teacher" in stage["stage"] and stage["calls"] for stage in found.stages)
    assert "RMS distance to the teacher" not in found.report["after"] and found.plan["paired"] == 0
    assert net.seen == found.calls <= BUDGET


def test_a_table_that_is_there_is_taken() -> None:
    problem = counted().fn.__self__
    gram = Gram.compute(counted(), problem.sample(32, seed=1), ratios=ratio_grid(NOISE, 32))
    found = optimize(counted(), 3, "ays", objective=off_the_modes, max_calls=BUDGET, gram=gram)
    assert "KLUB table" not in {s["stage"] for s in found.stages} and found.plan["stages"]["KLUB table"] == 0
    assert any(record["method"] == AYS for record in found.candidates)
    short = Gram.compute(counted(), problem.sample(8, seed=1), ratios=ratio_grid(EDM(0.1, 80.0), 8))
    with pytest.raises(ArgumentError, match="gram begins at noise level 0.1.*compute it"):
        optimize(counted(), 3, "ays", gram=short)


def test_teacher_digests_do_not_change() -> None:
    """A teacher from noise alone is filed as ever; one that starts from images is filed by them too."""
    net = counted()
    table = reference_schedule(NOISE).tabulate(NOISE)
    plain = Teacher(net, table, probe=Probe(net))
    assert plain.tableau.digest == solvers.dpmpp_3m(times.logsnr(NOISE, 60)).tabulate(NOISE).digest
    names = {Teacher(net, table, init=lambda s, k=k: torch.full((len(s), 2), k))._name(range(4)) for k in (0.0, 1.0)}
    assert len(names | {plain._name(range(4))}) == 3
