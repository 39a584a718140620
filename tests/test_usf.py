"""USF's records and files, and our tables and samples against those of its own sampler."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewstep import noise as ns
from fewstep.errors import FileFormatError, LossyExport
from fewstep.rules import Churn, Renoise, SolverSchedule, Step
from fewstep.sampling import sample
from fewstep.usf import from_usf, to_usf
from tests import usf_reference as reference

RECORDED = reference.recorded()
RELEASED = [case for case in RECORDED["tables"] if "nfe" in case]
GIVEN = {
    **{name: given for name, (_, given) in (reference.TABLES | reference.OUTPUTS).items()},
    **{name: RECORDED["tables"][name]["record"] for name in RELEASED},
}
SCHEDULES = os.environ.get("FEWSTEP_USF_SCHEDULES")
"""The authors' schedules, which have no licence and are not here: a folder of .pth files, or a JSON file of records."""


def ours(name: str, record: dict[str, Any], **more: Any) -> Any:
    noise = reference.NOISES[name]
    schedule = from_usf(record, noise)
    mean = reference.MEAN if schedule.afs == "mean" else None
    return schedule.tabulate(noise, mean=mean, **more)


@pytest.mark.parametrize("case", RECORDED["tables"])
def test_table_is_that_of_the_authors_sampler(case: str) -> None:
    """Six released schedules without v3 steps (thu-nics/USF 5b89ef5), and made-up ones with every scaling."""
    known = RECORDED["tables"][case]
    table = ours(known["noise"], known["record"]).unrolled()
    theirs = torch.tensor(known["outputs"], dtype=torch.float64)
    calls = [i for i, e in enumerate(table.evaluated) if e]
    free = not table.evaluated[0]
    keep = [*calls, table.rows - 1]
    constant = table.K[keep].sum(1) if table.K.shape[1] else torch.zeros(len(keep), dtype=torch.float64)
    start = table.A[keep][:, 0] + torch.tensor([0.0 if free else 1.0] + [0.0] * (len(keep) - 1), dtype=torch.float64)
    assert table.nfe == len(known["told"]) and free == (known["record"]["afs"] != "no_afs")
    scale = theirs.abs().amax(1).clamp_min(1.0)
    pairs = ((table.B[keep][:, calls], theirs), (start[:, None], _column(known["start"])))
    for mine, their in (*pairs, (constant[:, None], _column(known["offset"]))):
        assert ((mine - their).abs().amax(1) / scale).max() < 1e-9
    assert (table.model_times[calls] - torch.tensor(known["told"], dtype=torch.float64)).abs().max() < 1e-9


def _column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("case", RECORDED["outputs"])
def test_samples_with_v3_steps_are_those_of_the_authors_sampler(case: str) -> None:
    known = RECORDED["outputs"][case]
    noise = reference.NOISES[known["noise"]]
    table = ours(known["noise"], known["record"], statistics=reference.made_up(noise))
    calls: list[float] = []

    def network(x: torch.Tensor, t: float, _: Any) -> torch.Tensor:
        calls.append(t)
        return reference.denoise(x, noise.lam(t).item())

    made = sample(network, table, start=reference.starts(noise))
    wanted = torch.tensor(known["output"], dtype=torch.float64).reshape(made.shape)
    assert (made - wanted).abs().max() < 1e-9
    assert len(calls) == table.nfe == len(known["record"]["orders"]) - (known["record"]["afs"] != "no_afs")


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """The record without what says nothing: coefficients of no relaxation, two names of one scaling."""

    def entry(e: dict[str, Any]) -> dict[str, Any]:
        e = {k: v for k, v in e.items() if k != "relaxation_coefficient" or e["relaxation"] == "linear"}
        return e | ({"relaxation": "unipc-bh2"} if e["relaxation"] == "dpmsolver-2" else {})

    correctors = [
        c | {"derivative_type": [entry(e) for e in c["derivative_type"]]} if c["type"] != "no_corrector" else c
        for c in record["corrector_types"]
    ]
    kinds = [[entry(e) for e in step] for step in record["derivative_types"]]
    kept = {k: v for k, v in record.items() if k != "compact" and v is not None}
    return kept | {"derivative_types": kinds, "corrector_types": correctors}


def check_round_trip(record: dict[str, Any]) -> None:
    schedule = from_usf(record)
    assert schedule.to_usf() == plain(record)
    assert SolverSchedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule
    for noise in (ns.VPLinear(), ns.Discrete.linear()):
        if record["timesteps"][0] < 2:
            again = from_usf(to_usf(from_usf(record, noise), noise), noise)
            assert again.steps == from_usf(record, noise).steps and again.afs == schedule.afs


@pytest.mark.parametrize("case", GIVEN)
def test_round_trip(case: str) -> None:
    check_round_trip(GIVEN[case])


@pytest.mark.skipif(SCHEDULES is None, reason="FEWSTEP_USF_SCHEDULES names no file of the authors' schedules")
def test_all_released_schedules_round_trip() -> None:
    place = Path(SCHEDULES or "")
    records = json.loads(place.read_text()) if place.is_file() else {p.stem: str(p) for p in place.glob("*.pth")}
    assert len(records) >= 20
    for given in records.values():
        from fewstep.usf_file import read_pth

        check_round_trip(read_pth(given) if isinstance(given, str) else given)
        assert from_usf(given).meta["usf"]["skip_coefficients"]


def test_skip_coefficients_are_reported_and_not_applied() -> None:
    given = reference.TABLES["plain vp"][1]
    skipped = from_usf(given | {"skip_coefficients": torch.tensor([0.9, 1.0])})
    assert skipped.meta["usf"]["skip_coefficients"] == pytest.approx([0.9, 1.0])
    table = skipped.tabulate(ns.VPLinear())
    assert "skip coefficients" in str(table) and table == from_usf(given).tabulate(ns.VPLinear())
    assert skipped.canonical() == from_usf(given).canonical()
    assert skipped.to_usf()["skip_coefficients"] == skipped.meta["usf"]["skip_coefficients"]


def test_record_of_the_default_points() -> None:
    """Where a record names no active points, theirs are the newer ones, then the older."""
    given = reference.single_step(reference.UNIT[:4])
    left = json.loads(json.dumps(given))
    for step in left["derivative_types"]:
        for entry in step:
            entry["active_points"] = None
    noise = ns.VPLinear()
    wanted = from_usf(given, noise).canonical()
    assert from_usf(left, noise).canonical() == wanted and wanted.steps[2].active == ((-1, -2), (-1, -2))  # type: ignore[union-attr]


# -------------------------------------------------------------------------------------------------------------- files


def saved(tmp_path: Path, held: Any) -> Path:
    path = tmp_path / "schedule.pth"
    torch.save(held, path)
    return path


def test_files_of_torch_are_read_without_running_them(tmp_path: Path) -> None:
    given = reference.TABLES["plain vp"][1]
    tensors = given | {
        "timesteps": torch.tensor(given["timesteps"]), "skip_coefficients": torch.ones(3)[::2],
        "extra": OrderedDict(a=1),
    }  # fmt: skip
    alone = SolverSchedule.from_usf(saved(tmp_path, tensors))
    assert alone.times.tolist() == pytest.approx(given["timesteps"], rel=1e-6)
    assert alone.meta["usf"]["skip_coefficients"] == [1.0, 1.0]
    for held in ([tensors, np.float64(6.5)], {"decisions": tensors, "score": 6.5}):
        scored = from_usf(str(saved(tmp_path, held)))
        assert scored.steps == alone.steps and scored.meta["usf"]["score"] == 6.5


class Evil:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


@pytest.mark.parametrize(
    ("evil", "name"),
    [(Evil(os.system, "false"), "system"), (Evil(eval, "1"), "eval"), (Evil(getattr, "", "join"), "getattr")],
)
def test_malicious_files_are_refused(tmp_path: Path, evil: Any, name: str) -> None:
    given = reference.TABLES["plain vp"][1] | {"score": evil}
    with pytest.raises(FileFormatError, match=rf"name \w+\.{name}"):
        from_usf(saved(tmp_path, given))


def repacked(source: Path, target: Path, change: Any) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for part in old.namelist():
            data = change(part, old.read(part))
            if data is not None:
                new.writestr(part, data)
    return target


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    good = saved(tmp_path, {"timesteps": torch.linspace(1, 0.1, 5)})
    bad = tmp_path / "bad.pth"
    for change, match in (
        (lambda n, d: d[:6] if "data/" in n else d, "cannot be read|larger than its data"),
        (lambda n, d: None if n.endswith("data.pkl") else d, "0 pickles"),
        (lambda n, d: d[:-9] if n.endswith("data.pkl") else d, "cannot be read"),
        (lambda n, d: pickle.dumps([1, 2, 3]) if n.endswith("data.pkl") else d, "no timesteps"),
    ):
        with pytest.raises(FileFormatError, match=match):
            from_usf(repacked(good, bad, change))
    bad.write_bytes(b"no zip")
    with pytest.raises(FileFormatError, match=r"\.pth file"):
        from_usf(bad)
    with pytest.raises(FileFormatError):
        from_usf(tmp_path / "none.pth")
    stream = io.BytesIO()
    torch.save({"timesteps": 1}, stream, _use_new_zipfile_serialization=False)
    bad.write_bytes(stream.getvalue())
    with pytest.raises(FileFormatError, match="cannot be read"):
        from_usf(bad)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"orders": [1, 2]}, "step 2"),
        ({"prediction_types": ["x"] * 7}, "step 0"),
        ({"afs": "twice"}, "twice"),
        ({"start_points": [-1] * 8}, "lists of"),
        ({"derivative_types": [[]] * 7}, "order 2 with 0 derivatives"),
        ({"timesteps": [1.0, 0.5, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0]}, "fall strictly"),
        ({"timesteps": None}, "no solver schedule"),
    ],
)
def test_damaged_records_are_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(FileFormatError, match=match):
        from_usf(reference.TABLES["plain vp"][1] | change)


def test_points_that_do_not_exist_are_refused() -> None:
    given = json.loads(json.dumps(reference.TABLES["plain vp"][1]))
    given["derivative_types"][1][0]["active_points"] = [-4]
    with pytest.raises(FileFormatError, match="2 are known"):
        from_usf(given)


def test_what_the_encoding_cannot_say() -> None:
    times = torch.tensor([1.0, 0.5, 0.2])
    for steps, name in (
        ((Step("velocity"), Step()), "basis"), ((Step(tau=0.5), Step()), "noise"),
        ((Step(), Renoise(Churn(0.1)), Step()), "fresh"),
        ((Step("noise", weights=((-1, 1.0),)), Step()), "weights"),
    ):  # fmt: skip
        with pytest.raises(LossyExport, match=name):
            SolverSchedule(times, steps).to_usf()
    with pytest.raises(LossyExport, match="zero"):
        SolverSchedule(times, (Step(),) * 2, afs="zero").to_usf()
