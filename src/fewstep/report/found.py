"""The page of an optimisation: its record, put into the words and figures of a report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.report.figures import Candidate, Series
from fewstep.report.page import Cost, Entry, Page
from fewstep.report.parts import duration

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.found import Found
    from fewstep.tableau import Tableau

Figure = tuple[float, float | None]
"""A number and its standard error."""


def figure(found: Found, role: str) -> Figure | None:
    """The score of `before` or `after` on report seeds by the judge that selected (else the first judge there is)."""
    told: Mapping[str, Any] = found.report.get(role, {})
    if not told:
        return None
    record = told.get(found.selected_by) or next(iter(told.values()))
    return float(record["value"]), _error(record)


def judge_in_words(found: Found) -> str:
    """What the scores on the page are."""
    told: Mapping[str, Any] = found.report.get("after", {})
    name = found.selected_by if found.selected_by in told or not told else next(iter(told))
    return f"{name}, {told[name]['samples']:,} fresh samples" if name in told else name


def page_of(
    found: Found,
    *,
    samples: Mapping[str, Tensor],
    teacher: Tableau | None = None,
    series: Sequence[Series] = (),
    series_judge: str = "",
    series_note: str = "",
    extra_costs: Sequence[Cost] = (),
    command: str = "",
    schedule_file: str = "schedule.json",
    classes: int | None = None,
) -> Page:
    """The report of a search.

    Args:
        found: its record.
        samples: by role (`before`, `after`, `teacher`), of the same seeds.
        teacher: the reference sampler.
        series: quality against network calls, where it was measured, by `series_judge`; `series_note` explains.
        extra_costs: what the report itself took.
        command: the command line that made it.
        schedule_file: where the sampler lies.
        classes: number of classes of the samples.
    """
    entries = [
        _entry(
            found, "before", "best hand-crafted", found.start, samples, f"{found.start_solver}, {found.start_origin}"
        ),
        _entry(found, "after", "found", found.tableau, samples, f"{found.solver}, {found.origin}"),
    ]
    if teacher is not None:
        made = samples.get("teacher")
        entries.append(Entry("teacher", "teacher", teacher.nfe, teacher, made, detail=teacher.name))
    costs = [Cost(str(s["stage"]), int(s["calls"]), float(s["seconds"])) for s in found.stages if s["seconds"]]
    return Page(
        found.model, found.nfe, f"{found.method} with {found.solver}", judge_in_words(found), entries,
        selected_by=found.selected_by, series=series, series_judge=series_judge, series_note=series_note,
        candidates=candidates(found), trials=trials(found), parts=parts(found), course=course(found),
        costs=[*costs, *extra_costs], facts=_facts(found, command), gain_error=(gain(found) or (0.0, None))[1],
        schedule_file=schedule_file, classes=classes,
    )  # fmt: skip


def _entry(found: Found, role: str, label: str, tableau: Tableau, samples: Mapping[str, Tensor], detail: str) -> Entry:
    score, error = figure(found, role) or (None, None)
    told: Mapping[str, Any] = found.report.get(role, {})
    main = judge_in_words(found).rpartition(", ")[0]
    others = {name: (float(record["value"]), _error(record)) for name, record in told.items() if name != main}
    return Entry(label, role, tableau.nfe, tableau, samples.get(role), score, error, detail, others)


def gain(found: Found) -> Figure | None:
    """How much lower the score of the sampler found is on the same report seeds, by the judge of `figure`."""
    told: Mapping[str, Any] = found.report.get("gain", {})
    record = told.get(found.selected_by) or next(iter(told.values()), None)
    return None if record is None else (float(record["value"]), _error(record))


def _error(record: Mapping[str, Any]) -> float | None:
    error = record.get("standard_error")
    return None if error is None else float(error)


def _name(record: Mapping[str, Any], several: bool) -> str:
    return f"{record['solver']}: {record['origin']}" if several else str(record["origin"])


def candidates(found: Found) -> list[Candidate]:
    """Those of the last round, whose scores are of equally many samples and so can be compared."""
    last = max((int(n) for record in found.candidates for n in record["scores"]), default=0)
    several = len({record["solver"] for record in found.candidates}) > 1
    out: list[Candidate] = []
    for record in found.candidates:
        score = record["scores"].get(str(last))
        if score is None or not math.isfinite(score):
            continue
        role = (
            "after" if record["origin"] == found.origin else "before" if record["origin"] == found.start_origin else ""
        )
        fresh = record.get("fresh", {}).get("score")
        out.append(Candidate(_name(record, several), score, fresh, None, role))
    return out


def trials(found: Found) -> list[list[str]]:
    """Everything that was scored, best first: a column for each number of samples."""
    counts = sorted({int(n) for record in found.candidates for n in record["scores"]})
    rows = [["candidate", "method", *(f"{n} samples" for n in counts), "fresh"]]
    for record in found.candidates:
        scores = [record["scores"].get(str(n), "") for n in counts] + [record.get("fresh", {}).get("score", "")]
        told = ["overflow" if s is None else s if s == "" else f"{s:.4g}" for s in scores]
        rows.append([_name(record, True), str(record["method"]), *told])
    return rows


KINDS = {
    "hand": "hand-crafted times", "given": "the given sampler", "dmn": "DMN", "loss": "the loss curve", "ays": "AYS",
    "lesson": "times of the first lesson", "gits": "GITS", "oss": "OSS", "local_error": "least local error", "s3": "S³",
    "surrogate": "surrogate of the times",
}  # fmt: skip
"""Kinds of candidates in words; learned ones have their method's name."""


def parts(found: Found) -> list[list[str]]:
    """What each part found: how many samplers it entered, and the best of them; nothing where there is one part."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for record in found.candidates:
        kinds.setdefault(str(record["method"]), []).append(record)
    if len(kinds) < 3:
        return []
    rows = [["part", "samplers", "its best", "in the finals"]]
    for kind, records in kinds.items():  # in the order of the standing
        fresh = [r for r in records if r.get("fresh", {}).get("score") is not None]
        best = min(fresh, key=lambda r: r["fresh"]["score"]) if fresh else records[0]
        score = f"{best['fresh']['score']:.4g}" if fresh else ""
        rows.append([KINDS.get(kind, f"learned: {kind}"), str(len(records)), _name(best, True), score])
    return rows


def course(found: Found) -> list[list[str]]:
    """Where the race stood after each part."""
    rows = [["after", "network calls", "for this", "time", "best so far", "score", "samples"]]
    for step, spent in zip(found.course, _differences([int(step["calls"]) for step in found.course]), strict=True):
        score = "overflow" if step["score"] is None else f"{step['score']:.4g}"
        rows.append([
            step["part"], f"{step['calls']:,}", f"{spent:,}", duration(step["seconds"]),
            f"{step['solver']}: {step['best']}", score, str(step["images"]),
        ])  # fmt: skip
    return rows if len(rows) > 2 else []


def _differences(values: Sequence[int]) -> list[int]:
    return [value - before for before, value in zip([0, *values], values, strict=False)]


def _facts(found: Found, command: str) -> dict[str, str]:
    first, _, last = str(found.window.get("words", "")).partition(" to ")
    facts = {
        "command": command,
        "from": first,
        "to": last,
        "selected by": found.selected_by,
        "selection seeds": str(found.selection.get("seeds", "")),
        "report seeds": str(found.report.get("seeds", "")),
        "made for": made_for(found.tableau.meta.get("network", {})),
        "network": str(found.tableau.meta.get("fingerprint", "")),
        "sampler": f"{found.solver}, digest {found.tableau.digest}",
        "fewstep": str(found.tableau.meta.get("fewstep", "")),
    }
    return {k: v for k, v in facts.items() if v} | {f"note {k}": note for k, note in enumerate(found.notes, 1)}


def made_for(network: Mapping[str, Any]) -> str:
    """The pipeline that a schedule was found for, in words; nothing for other networks."""
    if not network:
        return ""
    size = "x".join(str(network[k]) for k in ("width", "height", "num_frames") if k in network)
    prompts = network["prompts"]
    told = [f"{network['pipeline']} {network['weights']}", f"guidance {network['guidance']:g}"]
    told += [f"low-noise guidance {network['guidance_2']:g}"] if "guidance_2" in network else []
    adapters = [name for part in network.get("adapters", {}).values() for name in part]
    told += [f"adapters {', '.join(adapters)}"] if adapters else []
    return ", ".join([*told, size, f"{prompts['count']} prompts ({prompts['digest']})"])


def lines(searches: Sequence[Found]) -> list[Series]:
    """Before and after of several searches against their numbers of calls."""
    out: list[Series] = []
    for role, label in (("before", "best hand-crafted"), ("after", "found")):
        told = [(float(f.nfe), score) for f in searches if (score := figure(f, role)) is not None]
        if told:
            x, values, errors = tuple(n for n, _ in told), tuple(s[0] for _, s in told), tuple(s[1] for _, s in told)
            out.append(Series(label, x, values, errors, role))
    return out


def neighbours(folder: Path, found: Found) -> list[Found]:
    """Other finished searches beside this folder that can stand in one chart: same network, same judge, other calls."""
    from fewstep.errors import FewstepError
    from fewstep.found import SEARCH_FILE, Found

    others: dict[int, Found] = {}
    for path in sorted(folder.resolve().parent.glob(f"*/{SEARCH_FILE}")):
        if path.parent == folder.resolve():
            continue
        try:
            other = Found.load(path)
        except (FewstepError, json.JSONDecodeError):
            continue
        keys = ("fingerprint", "selected_by", "solver", "window", "teacher_calls", "images")
        same = all(other.tableau.meta.get(k) == found.tableau.meta.get(k) for k in keys)
        if same and other.complete and judge_in_words(other) == judge_in_words(found) and other.nfe != found.nfe:
            others[other.nfe] = other
    return [others[nfe] for nfe in sorted(others)]
