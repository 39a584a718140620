"""The experiment of AYS's Tables 5 and 6 as a machine: what it chooses, keeps and shows; on an analytic problem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep import models, solvers, times
from fewstep.errors import ArgumentError
from fewstep.inputs import known_data
from fewstep.metrics import Statistics
from fewstep.reproduce.ays_table import AysTable
from fewstep.reproduce.choosing import Choice, Settings
from fewstep.search.ays import refine, to_ratios
from fewstep.search.teacher import sde_of
from fewstep.times.resample import log_linear

SMALL = Settings(
    solvers=("sde_dpmpp_2m",), nfes=(4, 12), levels=16, paths=64, per_start=1, rounds=((48, 0.2), (96, 0.0)),
    finals=64, images=64, seed_sets=2, batch=96,
)  # fmt: skip


GRIDS = ("karras", "logsnr", "flow_shift", "quadratic")
"""So many hand-crafted grids are enough to choose from: the paper's two baselines, and two others."""


@pytest.fixture(autouse=True, scope="module")
def few_grids() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(times, "NAMES", {name: times.NAMES[name] for name in GRIDS})
        yield


def table(folder: Path, settings: Settings = SMALL, **options: object) -> AysTable:
    model = models.load("problem:grid_6x6")
    judge, data = models.judge("problem:grid_6x6"), known_data(model, 128)
    assert judge is not None and data is not None
    return AysTable(model, judge, data, folder, settings, **options)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AysTable:
    made = table(tmp_path_factory.mktemp("whole"))
    made.run()
    return made


def test_the_whole_table_and_its_resumption(whole: AysTable) -> None:
    page = whole.markdown()
    assert "..." not in page and page.count("\N{RIGHTWARDS ARROW}") == 4
    again = table(whole.folder)
    again.run()  # all is on disk: no call is made
    assert again.model.evaluations == 0
    assert again.markdown() == page


def test_an_interrupted_table_goes_on_to_the_same_scores(whole: AysTable, tmp_path: Path) -> None:
    broken = table(tmp_path)
    seen = 0

    def stop(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == 5:
            raise KeyboardInterrupt

    broken.progress = stop
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    assert "..." in broken.markdown()
    rest = table(tmp_path)
    rest.run()
    assert rest.markdown() == whole.markdown()


def test_another_machines_last_bits_find_the_same_score(whole: AysTable) -> None:
    work = table(whole.folder)
    grid = work.chooser.chosen("sde_dpmpp_2m", 4, "hand").times
    near, other = (grid * (1 + size * torch.tensor([0.0, 1, -1, 1, 0], dtype=torch.float64)) for size in (5e-16, 1e-6))
    assert not torch.equal(near, grid)
    assert work.found("sde_dpmpp_2m", near) == work.found("sde_dpmpp_2m", grid) != []
    assert work.found("sde_dpmpp_2m", other) == []
    assert work.found("ddim", grid) == []


def test_what_was_raced_on_another_motion_is_raced_again(whole: AysTable, monkeypatch: pytest.MonkeyPatch) -> None:
    work = table(whole.folder, replace(SMALL, objective="matched"))
    frechet = table(whole.folder, replace(SMALL, objective="frechet")).chooser
    keys = [work.chooser._key(solver, 4, "hand") for solver in ("ddim", "ddpm")]
    law = frechet._key("ddpm", 4, "hand")
    monkeypatch.setattr("fewstep.reproduce.choosing.MOTION", "another")
    assert work.chooser._key("ddim", 4, "hand") == keys[0] and work.chooser._key("ddpm", 4, "hand") != keys[1]
    assert frechet._key("ddpm", 4, "hand") == law


def test_the_best_hand_crafted_times_are_chosen_by_the_score(tmp_path: Path) -> None:
    work = table(tmp_path, replace(SMALL, rounds=((64, 0.0),)))
    choice = work.chooser.chosen("ddim", 4, "hand")
    grids = work.chooser.hand_crafted("ddim", 4)
    scores = {name: work.chooser._selection("ddim", grid, 64) for name, grid in grids.items()}
    assert choice.origin == min(scores, key=lambda name: scores[name])
    assert torch.equal(choice.times, grids[choice.origin])


def test_every_hand_crafted_grid_is_a_start(whole: AysTable) -> None:
    chooser = table(whole.folder).chooser
    snapshots = chooser.snapshots("ddim", 4).values()
    assert {snapshot.start for snapshot in snapshots} == set(chooser.hand_crafted("ddim", 4))
    assert all(snapshot.sweep > 0 for snapshot in snapshots)


def test_more_steps_come_from_the_hierarchy(whole: AysTable) -> None:
    work = table(whole.folder)
    coarse = work.chooser.chosen("sde_dpmpp_2m", 10, "ays")
    assert work.chooser.gram is not None  # from the cache
    before = work.model.evaluations
    fine = work.chooser._ays("sde_dpmpp_2m", 12)
    assert work.model.evaluations == before  # no network call
    noise = work.model.noise
    expected = log_linear(refine(work.chooser.gram.klub, to_ratios(noise, coarse.times), 2), 13)
    assert (to_ratios(noise, fine.times).log() - expected.log())[:-1].abs().max() < 1e-9
    assert torch.equal(fine.times[[0, -1]], coarse.times[[0, -1]])


def test_ays_column_is_ays_even_where_it_would_not_be_kept(whole: AysTable) -> None:
    choice = table(whole.folder).chooser.chosen("sde_dpmpp_2m", 4, "ays")
    assert "AYS" in choice.origin and choice.kept in (True, False)


def test_stochastic_solvers_are_judged_by_a_teacher_of_their_own(tmp_path: Path) -> None:
    chooser = table(tmp_path).chooser
    drawn = [chooser._teacher(sde_of(name)) for name in ("ddim", "ddim_eta1", "er_sde_1")]
    assert [teacher and teacher.tableau.name for teacher in drawn] == ["dpmpp_3m", "sde_dpmpp_2m", "er_sde"]
    assert all(teacher is not None and teacher.tableau.nfe == 60 for teacher in drawn)
    alone = table(tmp_path, replace(SMALL, objective="frechet", teacher_calls=0)).chooser
    assert alone._teacher("") is None
    assert alone._selection("ddim_eta1", alone.hand_crafted("ddim", 4)["karras"], 48) > 0


def test_what_chooses_is_part_of_a_choices_name(tmp_path: Path) -> None:
    keys = {
        table(tmp_path, replace(SMALL, objective=objective, teacher_calls=calls)).chooser._key("ddim", 4, "ays")
        for objective, calls in (("auto", 60), ("matched", 60), ("matched", 30), ("frechet", 60), ("frechet", 30))
    }
    assert len(keys) == 3  # auto is `matched` here, and `frechet` knows no teacher


def test_the_papers_baseline(tmp_path: Path) -> None:
    chooser = table(tmp_path).chooser
    assert chooser.chosen("ddim", 4, "paper").origin == "logsnr"
    assert chooser.chosen("sde_dpmpp_2m", 4, "paper").origin == "karras"


def test_other_references_are_scored_too(tmp_path: Path) -> None:
    model = models.load("problem:grid_6x6")
    other = Statistics.of(torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    found = table(tmp_path, others={"normal": other}).score("ddim", 4, "hand", 0)
    assert found["fd normal"] > 0 and found["fd normal"] != found["fd"]
    assert model.noise == table(tmp_path).model.noise


def test_seed_sets_are_disjoint(whole: AysTable) -> None:
    work = table(whole.folder)
    one, two = work.score("sde_dpmpp_2m", 4, "hand", 0), work.score("sde_dpmpp_2m", 4, "hand", 1)
    assert one["fd"] != two["fd"]
    assert not set(work._seeds(0)) & set(work._seeds(1))


@pytest.mark.parametrize(
    ("hand", "ays", "error", "bold"),
    [
        ([1.0, 1.1], [0.8, 0.9], 0.5, "ays"),
        ([0.8, 0.9], [1.0, 1.1], 0.5, "hand"),
        ([1.0, 1.1], [0.8, 1.05], 0.001, ""),
        ([1.0], [0.8], 0.5, ""),  # one set: the errors decide
        ([1.0], [0.8], 0.01, "ays"),
        ([0.8], [1.0], 0.01, "hand"),
    ],
)
def test_bold_is_apart(
    hand: list[float], ays: list[float], error: float, bold: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = table(tmp_path, replace(SMALL, nfes=(4,), seed_sets=len(hand)))
    choice = Choice(torch.tensor([1.0, 0.0]), "by hand")
    scores = {
        kind: [{"fd": value, "fd_error": error} for value in values] for kind, values in (("hand", hand), ("ays", ays))
    }
    monkeypatch.setattr(AysTable, "known", lambda self, solver, nfe, kind: (choice, scores.get(kind, scores["hand"])))
    marked = {k: f"**{sum(v) / len(v):.3g}**" in work.markdown() for k, v in (("hand", hand), ("ays", ays))}
    assert marked == {"hand": bold == "hand", "ays": bold == "ays"}


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="paths=4096"):
        table(tmp_path, replace(SMALL, paths=4096))
    with pytest.raises(ArgumentError, match="from 2 on"):
        table(tmp_path, replace(SMALL, nfes=(1,)))
    with pytest.raises(ArgumentError, match="share from 0 to 1"):
        replace(SMALL, rounds=((48, 12),))
    with pytest.raises(ArgumentError, match="objective"):
        table(tmp_path, replace(SMALL, objective="nonsense"))
    with pytest.raises(ArgumentError, match="no solver|unknown|nonsense"):
        table(tmp_path, replace(SMALL, solvers=("nonsense",)))


def test_paper_solvers_all_exist() -> None:
    assert all(solvers.calls(name, n) == n for name in Settings().solvers for n in (5, 10, 20, 30))
