"""Which trials deserve more images: the best third of those with the same number of network calls, rung by rung.

Asynchronous successive halving (Li et al. 2020): nobody waits for a rung to be full; a trial is promoted as soon as it
is in the best third of those that are there. Scores of different numbers of images are never compared.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

from fewstep.study.records import Entry, Key

KEPT = 3
"""One in so many goes on."""


class Rungs:
    """The standing of all trials.

    Args:
        counts: images of the rungs, rising.
    """

    def __init__(self, counts: Sequence[int], entries: Iterable[Entry] = ()) -> None:
        self.counts = tuple(counts)
        self._standing: dict[tuple[int, int], list[tuple[float, int]]] = {}
        self._gone: set[Key] = set()
        for entry in entries:
            for images in entry.trial.scores:
                self.note(entry, images)
            self._gone.update(key for key in entry.evaluations if not key.fresh)

    def note(self, entry: Entry, images: int) -> None:
        """A score came in."""
        scores = self._standing.setdefault((self.counts.index(images), entry.trial.nfe), [])
        bisect.insort(scores, (entry.trial.scores[images], entry.trial.number))

    def best(self, nfe: int, many: int) -> list[tuple[int, int]]:
        """Up to `many` trials of this number of calls, best first, with their images: of the highest rung reached."""
        for rung in reversed(range(len(self.counts))):
            scores = self._standing.get((rung, nfe), [])
            if finite := [number for score, number in scores[:many] if score < float("inf")]:
                return [(number, self.counts[rung]) for number in finite]
        return []

    def promotion(self, *, final: bool) -> Key | None:
        """The next evaluation that was earned: highest rung first, then fewest calls, then the best score.

        `final`: no new trials will come; then at least one of each number of calls goes on.
        """
        for (rung, _), scores in sorted(self._standing.items(), key=lambda item: (-item[0][0], item[0][1])):
            if rung + 1 == len(self.counts):
                continue
            for score, number in scores[: max(int(final), len(scores) // KEPT)]:
                key = Key(number, self.counts[rung + 1])
                if key not in self._gone and score < float("inf"):
                    self._gone.add(key)
                    return key
        return None
