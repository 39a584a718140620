"""What a study is to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What a run is to do, from the study's record.

    Attributes:
        budget: trials to be evaluated; those that fail for good do not count.
        counts: images of the rungs, rising.
        nfes: network calls that proposals may have.
        seed: of the proposals.
        fresh: images for scoring the winners again on fresh seeds, beside as many as selected them; 0 for none.
        winners: trials of each number of calls that are scored again.
        ask: proposals asked for at once when one worker serves them.
    """

    budget: int
    counts: tuple[int, ...]
    nfes: tuple[int, ...]
    seed: int = 0
    fresh: int = 0
    winners: int = 1
    ask: int = 1

    @staticmethod
    def of(values: Mapping[str, Any]) -> Plan:
        """From the study's values: its record, and the budget, which may have been raised since."""
        record = values["record"]
        return Plan(
            int(values.get("budget", record["budget"])), tuple(record["counts"]), tuple(record["nfes"]),
            record["seed"], record["fresh"], record["winners"], record["ask"],
        )  # fmt: skip
