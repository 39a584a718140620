"""The image experiment of a Unified Sampling Framework (Liu, Ning, Yang & Wang, ICLR 2024), for any network.

One search over whole solver schedules for all numbers of calls, by the Fréchet distance of a small set of images; then
the winners, and the published solvers that were best on the same images, by that of a large one on fresh seeds.

The search is a study, which any interruption leaves whole; every score of the table is on disk before the next is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep import searching
from fewstep.compare import Results, look
from fewstep.errors import ArgumentError
from fewstep.evaluating import Evaluator
from fewstep.metrics import frechet_with_error
from fewstep.progress import Event, Report, silent
from fewstep.proposals import Trial
from fewstep.randomness import ReportSeeds
from fewstep.search.cache import digest
from fewstep.search.s3.archive import score_of
from fewstep.study.reading import read
from fewstep.study.rungs import Rungs

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser
    from fewstep.models import Judge

STUDY = "search.sqlite"
KINDS = ("constant", "found")
"""The best published solver on published times, with one strategy throughout, and the best schedule of the search."""


@dataclass(frozen=True)
class UsfSettings:
    """How much is spent.

    Attributes:
        nfes: numbers of network calls, searched together.
        budget: schedules evaluated, for each of them.
        images: of an evaluation; the authors' released searches take 1,000.
        finals: images of the table.
        candidates: schedules of each kind and number of calls that are scored on them. The best by the small set is one
            of many noisy figures; with more than one the table shows the first and keeps the others in its file.
        proposer, seed: of the search.
        statistics: file of the network's statistics, for DPM-Solver-v3's basis (as in USF++; the paper has none).
        batch: images at a time.
    """

    nfes: Sequence[int] = (4, 5, 6, 7, 8, 9, 10)
    budget: int = 400
    images: int = 1000
    finals: int = 50_000
    candidates: int = 1
    proposer: str = "s3"
    seed: int = 0
    statistics: Path | None = None
    batch: int = 250


@dataclass
class UsfTable:
    """The experiment: `run()` makes what is missing, `markdown()` shows what there is.

    Args:
        model: the network, under its default conditions; `name` stands for it in the study.
        judge: features and reference statistics.
        folder: for `search.sqlite` and `scores.jsonl`.
        settings: how much is spent.
        progress: told what is going on.
    """

    model: Denoiser
    name: str
    judge: Judge
    folder: Path
    settings: UsfSettings = field(default_factory=UsfSettings)
    progress: Report = silent

    def __post_init__(self) -> None:
        s = self.settings
        if s.candidates < 1 or s.finals < 48:
            raise ArgumentError(f"candidates={s.candidates}, finals={s.finals}: give at least 1 and 48")
        self.folder = Path(self.folder)
        self._scores = Results(self.folder / "scores.jsonl")
        self._evaluator: Evaluator | None = None

    def run(self) -> None:
        """Search, then score the finalists."""
        s = self.settings
        with self._search() as search:
            self._evaluator = search.evaluator
            search.run(progress=self.progress)
        work = [(nfe, kind, k) for k in range(s.candidates) for nfe in sorted(set(s.nfes)) for kind in KINDS]
        for done, (nfe, kind, k) in enumerate(work):
            self.progress(Event("finals", done, len(work), f"{nfe} calls, {kind}"))
            trials = self.finalists(nfe, kind)
            if k < len(trials):
                self.score(trials[k], kind)
        self.progress(Event("finals", len(work), len(work)))

    def _search(self) -> searching.Search:
        s, path = self.settings, self.folder / STUDY
        budget = s.budget * len(set(s.nfes))
        if path.exists():
            record = read(path).record
            asked: dict[str, Any] = {"nfes": sorted(set(s.nfes)), "counts": [s.images], "proposer": s.proposer,
                                     "seed": s.seed}  # fmt: skip
            wrong = [
                f"{name} {record[name]} there, {value} now" for name, value in asked.items() if record[name] != value
            ]
            if wrong:
                raise ArgumentError(f"{path} is another search ({'; '.join(wrong)}): give another folder")
            return searching.resume(path, budget=budget, network=self.model, judge=self.judge)
        self.folder.mkdir(parents=True, exist_ok=True)
        return searching.start(
            path, self.name, nfes=s.nfes, budget=budget, proposer=s.proposer, objective="frechet", images=(s.images,),
            fresh=0, seed=s.seed, batch_size=s.batch, statistics=s.statistics, network=self.model, judge=self.judge,
        )  # fmt: skip

    def finalists(self, nfe: int, kind: str) -> list[Trial]:
        """The best trials of a kind and number of calls by the search's score, best first."""
        entries = read(self.folder / STUDY).entries
        if kind == "found":
            best = Rungs((self.settings.images,), entries.values()).best(nfe, self.settings.candidates)
            return [entries[number].trial for number, _ in best]
        first = [e.trial for e in entries.values() if e.trial.nfe == nfe and e.trial.proposal.stage == 0 and e.scored]
        return sorted(first, key=score_of)[: self.settings.candidates]

    def score(self, trial: Trial, kind: str) -> dict[str, Any]:
        """`fd` and `fd_error` on the large set of fresh seeds, made once."""
        seeds = ReportSeeds(self.settings.finals)
        key = digest("usf", self.model.fingerprint, self.judge.reference.mean, trial.digest, repr(seeds))
        known = self._scores.get(key)
        if known is None:
            assert self._evaluator is not None
            table = self._evaluator.tabulate(trial.proposal.schedule)
            made = look(self.model, table, seeds, features=self.judge.features, batch_size=self.settings.batch)
            assert made.features is not None
            value, error = frechet_with_error(made.features, self.judge.reference)
            known = {"fd": value, "fd_error": error, "selected_by": score_of(trial), "trial": trial.number}
            self._scores.add(key, known, nfe=trial.nfe, kind=kind, origin=trial.proposal.origin)
        return known

    def cells(self) -> Iterator[dict[str, Any]]:
        """What the table shows, with the decisions: the first finalist of each number of calls and kind."""
        for nfe in sorted(set(self.settings.nfes)):
            for kind in KINDS:
                for trial in self.finalists(nfe, kind)[:1]:
                    yield {
                        "nfe": nfe, "kind": kind, "origin": trial.proposal.origin, "trial": trial.number,
                        "schedule": trial.proposal.schedule.to_dict(), **self.score(trial, kind),
                    }  # fmt: skip

    def markdown(self) -> str:
        """The finished table: Fréchet distances on fresh seeds, and on the small set that selected in brackets."""
        nfes = sorted(set(self.settings.nfes))
        found = {(cell["nfe"], cell["kind"]): cell for cell in self.cells()}
        lines = ["| | " + " | ".join(f"{n} calls" for n in nfes) + " |", "|---" * (len(nfes) + 1) + "|"]
        for kind, title in zip(KINDS, ("best constant strategy", "best schedule found"), strict=True):
            words = [
                f"{cell['fd']:.4g} ({cell['selected_by']:.4g})" if (cell := found.get((n, kind))) else "n/a"
                for n in nfes
            ]
            lines.append(f"| {title} | " + " | ".join(words) + " |")
        return "\n".join(lines) + "\n"
