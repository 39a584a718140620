"""The search strategies by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fewstep.errors import ArgumentError
from fewstep.noise import EDM, NoiseSchedule
from fewstep.proposals import Proposer
from fewstep.search.s3.evolution import Evolution, RandomSearch
from fewstep.search.s3.guided import S3, Guidance
from fewstep.search.s3.initial import LIMIT
from fewstep.search.s3.rates import Rates, default_rates, released
from fewstep.search.s3.space import Space
from fewstep.search.s3.tpe import TPE

NAMES = ("s3", "evolution", "random", "tpe")
SPACE = ("bases", "afs", "ends", "clean", "orders", "starts", "implicit", "taus", "gap", "reach")


def proposer(
    name: str,
    *,
    noise: NoiseSchedule,
    nfes: Sequence[int],
    seed: int,
    rates: Rates | str | dict[str, Any] | None = None,
    limit: int = LIMIT,
    **options: Any,
) -> Proposer:
    """A search strategy over solver schedules with the given numbers of network calls.

    Args:
        name: "s3" (guided by a surrogate), "evolution" (as released), "random", or "tpe" (needs optuna).
        noise: schedule of the states.
        nfes: numbers of calls; one search serves them all.
        seed: of everything that is drawn.
        rates: of mutation and crossover, or the name of a released configuration.
        limit: size of the initial population for each number of calls.
        options: of `Space` (bases, afs, ends, clean, ..; EDM's times may be clean unless told otherwise); `guidance` (a
            `Guidance`) for "s3"; `mode` ("mutations" or "uniform") for "random". A study keeps options as plain data,
            so `rates` and `guidance` may be records of their fields.

    Raises:
        ArgumentError: an unknown name or option; a space without schedules.
    """
    chosen = _rates(rates, noise)
    # Published samplers of EDM networks end where there is no noise left.
    inside: dict[str, Any] = {"ends": chosen.ends if _fits(noise, chosen) else None, "clean": isinstance(noise, EDM)}
    inside |= {k: options.pop(k) for k in SPACE if k in options}
    space = Space(noise, tuple(nfes), **inside)
    strategies: dict[str, tuple[type[Evolution], tuple[str, ...]]] = {
        "s3": (S3, ("guidance",)), "evolution": (Evolution, ()), "random": (RandomSearch, ("mode",)), "tpe": (TPE, ()),
    }  # fmt: skip
    if name not in strategies:
        raise ArgumentError(f"there is no proposer {name!r}: choose one of {', '.join(NAMES)}")
    strategy, known = strategies[name]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ArgumentError(
            f"unknown options {', '.join(unknown)} for {name!r}: it takes {', '.join([*SPACE, *known])}"
        )
    if isinstance(options.get("guidance"), dict):
        options["guidance"] = Guidance.of(options["guidance"])
    return strategy(space, chosen, limit=limit, seed=seed, **options)


def _rates(rates: Rates | str | dict[str, Any] | None, noise: NoiseSchedule) -> Rates:
    if isinstance(rates, dict):
        return replace(default_rates(noise), **rates)
    return released(rates) if isinstance(rates, str) else rates or default_rates(noise)


def _fits(noise: NoiseSchedule, rates: Rates) -> bool:
    """Whether the released range of the last time lies within what this network knows."""
    return rates.ends is not None and noise.t_min <= rates.ends[0] and rates.ends[1] < noise.t_max


__all__ = ["Guidance", "proposer"]
