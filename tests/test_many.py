"""Several searches on one table; interruption anywhere; a network that fails; data in the wrong range; memory."""

import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fewstep
from fewstep import data_range, networks, problems, solvers
from fewstep.cli.asked import verdict
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.found import Found
from fewstep.many import optimize_many
from fewstep.models import load
from fewstep.noise import EDM
from fewstep.optimizing import optimize
from fewstep.progress import Event
from fewstep.search.klub import Gram, ratio_grid
from tests.test_optimize import BUDGET, NOISE, Counted, counted, mixture, off_the_modes

off_the_modes.fingerprint = "off the modes"  # so that its scores are kept
OPTIONS: dict[str, Any] = {"objective": off_the_modes, "teacher_calls": 0}


# ----------------------------------------------------------------------------------------------------- several at once
def test_many_share_one_table(tmp_path: Path) -> None:
    net = counted()
    many = optimize_many(net, [2, 3], ["ddim", "heun"], "ays", max_calls=16_000, out=tmp_path, **OPTIONS)
    assert set(many.results) == {("ddim", 2), ("ddim", 3), ("heun", 3)} and len(many) == 3
    assert many.skipped == ["heun cannot make exactly 2 network calls; near by it can make 1, 3, 5"]
    assert net.seen == many.calls <= 16_000
    shared = {stage["stage"]: stage["calls"] for stage in many.shared}
    assert shared["KLUB table"] > 0 and any("counted once" in note for note in many.notes)
    assert len(list((tmp_path / ".cache").glob("gram-*"))) == 1
    for (solver, nfe), found in many.results.items():
        assert (found.solver, found.nfe, found.tableau.nfe) == (solver, nfe, nfe)
        assert not any(stage["stage"] == "KLUB table" for stage in found.stages)
        assert Found.load(tmp_path / f"{solver}-{nfe}").tableau == found.tableau
        assert any("counted once" in note for note in found.notes)
    summary = json.loads((tmp_path / "searches.json").read_text())
    assert [row["folder"] for row in summary["results"]] == ["ddim-2", "ddim-3", "heun-3"]
    assert summary["calls"] == many.calls and summary["shared"] == many.shared
    again = counted()
    repeated = optimize_many(again, [2, 3], ["ddim", "heun"], "ays", max_calls=16_000, out=tmp_path, **OPTIONS)
    assert again.seen == repeated.calls == 1 and [f.report for f in repeated] == [f.report for f in many]


@pytest.mark.parametrize(
    ("improved", "gain", "error", "said"),
    [
        (True, 0.3, 0.1, "better"),
        (True, -0.3, 0.1, "worse"),
        (True, 0.1, 0.1, "no difference shown"),
        (True, 0.1, None, "not judged"),
        (False, 0.3, 0.1, "hand-crafted kept"),
    ],
)
def test_each_result_says_what_came_of_it(improved: bool, gain: float, error: float | None, said: str) -> None:
    told = {"value": gain, "standard_error": error, "samples": 64}
    found: Any = SimpleNamespace(improved=improved, selected_by="judge", report={"gain": {"judge": told}})
    assert verdict(found) == said


def test_many_are_refused_before_any_work() -> None:
    net = counted()
    for arguments, said in (
        (([], "ddim"), "nfes is empty"),
        (([4], []), "solvers is empty"),
        (([4], ["heun"]), "heun cannot make exactly 4"),
        (([4], ["nonsense"]), "no solver"),
        (([0], ["ddim"]), "nfe is 0"),
        (([4], [solvers.ddim, solvers.ddim]), "two of the solvers are named ddim"),
    ):
        with pytest.raises(ArgumentError, match=said):
            optimize_many(net, *arguments)
    with pytest.raises(ArgumentError, match="2 results share the budget, and for ddim with 4 calls.*give more calls"):
        optimize_many(net, [4, 5], "ddim", max_calls=3000)
    assert net.seen == 0 and fewstep.optimize_many is optimize_many


def test_solvers_in_a_list_compete() -> None:
    found = optimize(counted(), 3, "ays", solver=["ddim", "dpmpp_2m"], max_calls=BUDGET, **OPTIONS)
    assert {record["solver"] for record in found.candidates} == {"ddim", "dpmpp_2m"}


# --------------------------------------------------------------------------------------------------------- interrupted
def whole_run(net: Denoiser, folder: Path, stop_at: str = "", part: float = 0.5) -> Found:
    def progress(event: Event) -> None:
        if stop_at and event.stage == stop_at and event.total and event.done >= part * event.total:
            raise KeyboardInterrupt

    return optimize(net, 2, "ays", max_calls=3 * BUDGET, out=folder, batch_size=16, progress=progress)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, int]:
    net = counted()
    return whole_run(net, tmp_path_factory.mktemp("undisturbed")), net.calls


def comparable(found: Found) -> dict[str, Any]:
    record = found.to_dict()
    # What was spent is less where a cache had the answer.
    course = [{k: v for k, v in step.items() if k not in ("calls", "seconds")} for step in record["course"]]
    return {k: v for k, v in record.items() if k != "stages"} | {"tableau": found.tableau.digest, "course": course}


@pytest.mark.slow
def test_interrupted_in_every_stage(undisturbed: tuple[Found, int], tmp_path: Path) -> None:
    """Teacher, paths, race, finals, report: one folder, stopped again and again, ends with the same result."""
    for stage in ("teacher", "noising paths", "race", "finals", "report"):
        with pytest.raises(KeyboardInterrupt, match="run the same again"):
            whole_run(counted(), tmp_path, stage)
        if stage in ("race", "finals", "report"):
            partial = Found.load(tmp_path)
            assert not partial.complete and partial.candidates
    assert comparable(whole_run(counted(), tmp_path)) == comparable(undisturbed[0])


@pytest.mark.slow
def test_interrupted_between_calls(undisturbed: tuple[Found, int], tmp_path: Path) -> None:
    found, calls = undisturbed
    stops = 0
    for part in (0.03, 0.3, 0.5, 0.7):  # each run goes on where the last one stopped
        net = counted()
        net.left = int(part * calls * 0.5) + 1
        try:
            whole_run(net, tmp_path)
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 3
    assert comparable(whole_run(counted(), tmp_path)) == comparable(found)


def test_minutes_divide_the_same_budget_when_a_run_goes_on(tmp_path: Path) -> None:
    first, second = (
        optimize(counted(), 2, "dmn", minutes=1, max_calls=9000, out=tmp_path, **OPTIONS) for _ in range(2)
    )
    assert second.plan == first.plan and second.report == first.report
    assert "speed" not in {s["stage"] for s in second.stages}


# ---------------------------------------------------------------------------------------------- a network that fails
class Failing(Counted):
    """NaN for one sample after a number of calls."""

    def __init__(self, after: int) -> None:
        inner = mixture()
        super().__init__(inner.fn, noise=NOISE, shape=inner.shape, fingerprint="failing")
        self.inner, self.after = inner.fn, after
        self.fn = self.fails

    def fails(self, x: Tensor, t: object, condition: object = None) -> Tensor:
        out = self.inner(x, t, condition)
        if self.calls >= self.after:
            out[min(3, len(out) - 1)] = float("nan")
        return out


@pytest.mark.parametrize("after, said", [(5, "seeds 2000000003"), (100, "seeds 1000000003"), (10**9, "")])
def test_nan_names_sample_and_time_and_keeps_what_there_is(after: int, said: str, tmp_path: Path) -> None:
    """After five calls in the race; after a hundred in the pass over noised data."""
    net = Failing(after)
    data = mixture().fn.__self__.sample(64, seed=1)  # the failing network hides its problem, and so its data
    options = {**OPTIONS, "max_calls": BUDGET, "out": tmp_path, "batch_size": 64, "data": data}
    if not said:
        assert optimize(net, 3, "ays", **options).complete
        return
    with pytest.raises(DenoiserError, match=r"not finite at time [0-9.]+") as failed:
        optimize(net, 3, "ays", **options)
    assert "run the same again to go on" in str(failed.value) and failed.value.time is not None
    text = str(failed.value)
    assert "seeds 2000000" in text or "seeds 1000000" in text
    if (tmp_path / "search.json").exists():
        assert "the best so far" in text and not Found.load(tmp_path).complete


# ---------------------------------------------------------------------------------------------------- range of the data
@pytest.mark.parametrize("name", ["mnist", "mnist?noise=flow", "mnist?guidance=3"])
def test_pixels_in_another_range_are_recognised(name: str) -> None:
    shipped = networks.mnist_images(data_range.SAMPLES)
    pixels, net = shipped.images.float(), load(name)
    wrong = {"give data / 127.5 - 1": shipped.images, r"give data \* 2 - 1": pixels / 255}
    wrong |= {r"give data \* 2": pixels / 255 - 0.5} if name == "mnist" else {}
    for cure, data in wrong.items():
        with pytest.raises(ArgumentError, match=rf"likely trained on \[-1, 1\]; {cure}"):
            data_range.require_range(net, data, shipped.labels)
    data_range.require_range(net, pixels / 127.5 - 1, shipped.labels)


@pytest.mark.parametrize("name", list(problems.NAMES))
def test_data_in_their_own_range_pass(name: str) -> None:
    problem = problems.get(name)
    for offset in range(4):
        data = problem.sample(64, seed=offset)
        data_range.require_range(problem.denoiser(), data)
        data_range.require_range(problem.denoiser(), data.clamp(-1, 1))


def test_a_network_of_another_range_gets_its_own() -> None:
    problem = problems.GaussianMixture(
        torch.rand(30, 4, generator=torch.Generator().manual_seed(0)).round().double(), 1e-3
    )
    data = problem.sample(40, seed=1).clamp(0, 1)
    data_range.require_range(problem.denoiser(), data)
    with pytest.raises(ArgumentError, match=r"likely trained on \[0, 1\]; give data / 2 \+ 0.5"):
        data_range.require_range(problem.denoiser(), 2 * data - 1)


def test_the_range_is_looked_at_before_the_search_and_paid_for(tmp_path: Path) -> None:
    data = mixture().fn.__self__.sample(64, seed=1).clamp(-1, 1)
    net = counted()
    with pytest.raises(ArgumentError, match=r"likely trained on \[-1, 1\]"):
        optimize(net, 3, "ays", data=(data + 1) / 2, max_calls=BUDGET, **OPTIONS)
    assert net.seen == 4 * 2 * 24
    net = counted()
    found = optimize(net, 3, "ays", data=data, max_calls=BUDGET, **OPTIONS)
    (stage,) = [s for s in found.stages if s["stage"] == "range of the data"]
    assert stage["calls"] == stage["planned"] == 192 and net.seen == found.calls <= BUDGET


# --------------------------------------------------------------------------------------------------------------- memory
class Living(TorchDispatchMode):
    """The most bytes of tensors that were alive at once, of those made inside; views of `given` are not new."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given = given.untyped_storage()._cdata
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key == self.given:
                    continue
                self.sizes[key] = storage.nbytes()
                weakref.finalize(tensor, self.sizes.pop, key, None)
        self.most = max(self.most, sum(self.sizes.values()))
        return out


def test_the_memory_of_the_pass_does_not_grow_with_the_samples() -> None:
    noise, shape, batch, levels = EDM(), (2, 3, 8, 8), 4, 24
    net = problems.Gaussian(0.0, 0.25, shape=shape, noise=noise).denoiser()
    data = torch.randn(4 * 4 * batch, *shape, generator=torch.Generator().manual_seed(0))
    peaks = []
    for count in (4 * batch, 16 * batch):
        part = data[:count].clone()
        with Living(part) as living:
            Gram.compute(net, part, ratios=ratio_grid(noise, levels), batch_size=batch)
        peaks.append(living.most)
    outputs = 4 * (levels + 1) * batch * data[0].numel()
    assert peaks[1] <= 1.02 * peaks[0] and outputs < peaks[0] < 2.5 * outputs
