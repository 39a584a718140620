"""GITS and LD3 beside their authors' code: the report, what is refused, and how foreign modules come and go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import peers
from benchmarks.peers_code import EdmNetwork, imported, noise_of, stand_in
from fewstep import models
from fewstep.results import Results


def row(method: str, who: str, nfe: int, seed: int, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"method": method, "who": who, "model": "mnist", "nfe": nfe, "seed": seed, "images": 64}
    for k, name in enumerate(("distance", "excess", "to_teacher", "rms")):
        found |= {name: 0.1 * k + nfe / 100 + seed / 50, f"{name}_error": 0.02}
    return found | {"calls": 15_360, "teacher": 0.321} | more


def test_the_report_says_what_the_rows_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    kept = Results(path)
    same = {"off": 2e-5, "checked": 8, "costs_off": 3e-7, "knots": [0, 9, 60], "our_knots": [0, 9, 60]}
    rows = [
        row("gits", "authors", 4, 0, **same),
        row("gits", "authors", 4, 1, **same | {"off": 4e-5, "our_knots": [0, 8, 60]}),
        row("gits", "alike", 4, 0),
        row("ld3", "authors", 5, 0, off=1e-6, checked=8, updates=175),
        row("ld3", "whole", 5, 0, calls=40_000, origin="karras", selected_by="the judge"),
    ]
    for k, one in enumerate(rows):
        kept.add(str(k), one)
    assert peers.main(["report", "--results", str(path)]) == 0
    out = capsys.readouterr().out
    assert "| 4 | the authors' code | 0.250 ± 0.020 (0.240 to 0.260) | 0.050 ± 0.020 (0.040 to 0.060) |" in out
    assert "| 4 | `fewstep`, its plan, nothing chosen | 0.240 ± 0.020 | 0.040 ± 0.020 |" in out
    assert "| `fewstep optimize --method ld3` |" in out and "| 40,000 | 1 |" in out
    assert "chose, by the judge: karras (5 calls)" in out
    assert "at most 4.0e-05 (8 images in each of 2 rows" in out and "1 of 2 paths are the same" in out
    assert out.count("the teacher is 0.321 from the data") == 2


@pytest.mark.parametrize(("method", "home"), [("gits", "zju-pi/diff-sampler"), ("ld3", "vinhsuhi/LD3")])
def test_without_the_authors_code_it_says_where_to_get_it(
    method: str, home: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--results", str(tmp_path / "rows.jsonl")]
    assert peers.main([method, *where]) == 2
    assert f"--code is missing: give a clone of https://github.com/{home}" in capsys.readouterr().err
    assert peers.main([method, *where, "--code", str(tmp_path)]) == 2
    assert f"{tmp_path} has no" in capsys.readouterr().err
    assert peers.main(["report", *where]) == 2
    assert "has no rows" in capsys.readouterr().err


def test_foreign_modules_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "one.py").write_text("value = 3\n")
    (tmp_path / "utils.py").write_text("import absent\nfrom parts.one import value\nlooked = absent.word\n")
    before = set(sys.modules)
    with imported(tmp_path, ["utils"], {"absent": stand_in("absent", word="there")}) as (found,):
        assert (found.value, found.looked) == (3, "there") and "parts.one" in sys.modules
    assert not {"utils", "parts", "parts.one", "absent"} & (set(sys.modules) - before)
    assert str(tmp_path) not in sys.path


def test_their_conventions_mean_the_same_network() -> None:
    model = models.load("mnist")
    x, labels = 3 * torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 7])
    with torch.no_grad():
        wanted = model(x, 2.0, labels)
        theirs = EdmNetwork(model, 10)(x, torch.tensor(2.0), torch.eye(10)[labels])
        noise = noise_of(model)(x, torch.full((2,), 2.0), labels)
    assert torch.equal(theirs, wanted)
    torch.testing.assert_close((x - 2.0 * noise).float(), wanted, rtol=0, atol=1e-5)
