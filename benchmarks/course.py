"""How soon a search is good: `python -m benchmarks.course mnist --nfe 6 --minutes 10`.

`fewstep optimize` leaves the best so far in its folder after every part. A copy of each is taken with the time and the
network calls until then, and all are scored when the search is over, on the same report seeds, which nobody has seen.
The gain of a sampler is by how much it is nearer to the teacher's samples of the same noise than the first (of `auto`:
the best of the hand-crafted ones and DMN's); the last column is its part of the final gain. Printed as Markdown.

Nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep import compare, inputs, models
from fewstep.files import atomic_write_text
from fewstep.found import SEARCH_FILE
from fewstep.optimizing import optimize
from fewstep.progress import Event
from fewstep.randomness import ReportSeeds
from fewstep.reproduce.field_scores import Examiner, ruler_of
from fewstep.tableau import Tableau
from fewstep.words import with_error

OFFSET = 700_000_000
"""Report seeds of the scores, away from those of the search's own figures."""


@dataclass
class Watch:
    """Copies what lies in a search's folder whenever it has changed; told of every event of the search."""

    folder: Path
    begun: float = field(default_factory=time.monotonic)
    seen: list[dict[str, Any]] = field(default_factory=list)
    _last: float = 0.0

    def __call__(self, event: Event | None = None) -> None:
        """Look once."""
        file = self.folder / SEARCH_FILE
        try:
            changed = file.stat().st_mtime
            record = json.loads(file.read_text()) if changed > self._last else None
        except FileNotFoundError:
            return
        if record is None:
            return
        self._last = changed
        stand = record["course"][-1] if record["course"] else {}
        whole = record.get("complete", True)
        self.seen.append({
            "part": "finals" if whole else stand.get("part", ""),
            "origin": record["origin"], "solver": record["solver"],
            "seconds": round(changed - time.time() + time.monotonic() - self.begun, 1),
            "calls": sum(stage["calls"] for stage in record["stages"]), "tableau": record["tableau"],
        })  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Search, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--nfe", type=int, default=6)
    parser.add_argument("--minutes", type=float, help="for the search")
    parser.add_argument("--max-calls", type=int, help="network calls of the search")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--images", type=int, default=2000, help="behind each score")
    parser.add_argument("--out", type=Path, help="JSON file for the scores")
    asked = parser.parse_args(arguments)
    model = models.load(asked.model)
    with tempfile.TemporaryDirectory() as place:
        watch = Watch(Path(place))
        found = optimize(model, asked.nfe, asked.method, minutes=asked.minutes, max_calls=asked.max_calls, out=place,
                         progress=watch)  # fmt: skip
        watch()
    print(
        f"{watch.seen[-1]['seconds']:.0f} s, {found.calls:,} network calls, {found.solver}, {found.origin}", flush=True
    )
    scored(asked, model, watch.seen)
    if asked.out is not None:
        atomic_write_text(asked.out, json.dumps(watch.seen, indent=1) + "\n")
    print(table(watch.seen))
    return 0


def scored(asked: argparse.Namespace, model: Any, seen: list[dict[str, Any]]) -> None:
    """Add scores to what was seen; equal tables are scored once."""
    examiner = Examiner(
        model, ruler_of(model, inputs.judge_of(model)), ReportSeeds(asked.images, OFFSET), compare.teacher(model),
        neighbours=48,
    )  # fmt: skip
    known: dict[str, dict[str, Any]] = {}
    for stand in seen:
        tableau = Tableau.from_dict(stand.pop("tableau"))
        if tableau.digest not in known:
            known[tableau.digest] = examiner(tableau)
        stand["scores"] = known[tableau.digest]


def table(seen: list[dict[str, Any]]) -> str:
    """Markdown."""
    first, last = (seen[k]["scores"]["to_teacher"] for k in (0, -1))
    lines = ["| after | seconds | network calls | best so far | to the teacher's samples | RMS | part of the gain |",
             "|---|---:|---:|---|---:|---:|---:|"]  # fmt: skip
    for stand in seen:
        scores = stand["scores"]
        pairs = [with_error(scores[name], scores[f"{name}_error"]) for name in ("to_teacher", "rms")]
        gain = (first - scores["to_teacher"]) / (first - last) if first != last else float("nan")
        lines.append(
            f"| {stand['part']} | {stand['seconds']:.0f} | {stand['calls']:,} | {stand['solver']}, {stand['origin']} | "
            f"{pairs[0]} | {pairs[1]} | {gain:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
