"""Result files of other projects as tables: DyWeight, EPD, AdaSDE, GAS, NeuralSolver, LD3 and USF.

Each module follows one project's step formula; this one recognises the file. What a file does not hold must be given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

from fewstep.errors import ArgumentError, FileFormatError, TableauError
from fewstep.noise import NoiseSchedule
from fewstep.peers import dyweight, epd, gas, ld3, neural_solver
from fewstep.peers.held import Contents, contents
from fewstep.rules import SolverSchedule
from fewstep.tableau import Tableau

KNOWN = "DyWeight, EPD, AdaSDE, GAS, NeuralSolver, LD3, USF"
NUMBERS = ("sigma_min", "sigma_max", "shift", "t_eps", "order", "steps")
PREDICTORS: dict[str, Callable[..., Tableau]] = {
    "DyWeight_predictor": dyweight.read_snapshot,
    "EPD_predictor": epd.read_snapshot,
    "adasde_predictor": epd.read_snapshot,
}


class Recognised(NamedTuple):
    """Whose file it is, and what reads it."""

    project: str
    reader: Callable[..., Tableau]


def from_peer(path: str | Path, noise: NoiseSchedule | None = None, **options: Any) -> Tableau:
    """A sampler that another project found, from the file in which it saved it.

    The file is decoded and never executed: of pickles nothing but tensors, plain containers and records of modules is
    accepted. Its project is recognised by what it holds: DyWeight and EPD (`network-snapshot-*.pkl`, DyWeight's `.pt`
    for FLUX, EPD-Solver++'s predictors), AdaSDE, GAS (`STEP.pt`), NeuralSolver (`ns_sampling.py`, `.ckpt`, `.json`),
    LD3 (`best_v2.pt`), USF (`.pth`).

    Args:
        path: of the file.
        noise: of the network that is to be sampled. Where the file says that it was learned for EDM's networks or for
            flow matching, that is the default.
        options: what the file does not hold: `sigmas`, `sigma_min`, `sigma_max` (DyWeight, EPD, AdaSDE), `shift` or
            `sigmas` (DyWeight for FLUX), `t_eps`, `ema` (GAS), `steps`, `table`, `family`, `double_step`
            (NeuralSolver), `solver`, `order`, `variant` (LD3).

    Returns:
        The table: `fewstep.sample` runs what the project's own code would run, with the network asked at the same
        times and states. AdaSDE's draws its noise. `meta["peer"]` says where it is from.

    Raises:
        ArgumentError: what is missing, with the option that gives it; an option that the file has no use for.
        FileFormatError: a damaged file, one that asks for code to be run, one of an unknown project, or a sampler that
            is no table (AMED's steps depend on the sample).
    """
    held = contents(Path(path))
    found = _recognised(held)
    known = [n for n, p in inspect.signature(found.reader).parameters.items() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(options) - set(known)):
        raise ArgumentError(
            f"{path} is a file of {found.project}, which has no option {', '.join(unknown)}; it has "
            f"{', '.join(known) or 'none'}"
        )
    _check_numbers(options)
    try:
        return found.reader(held, noise, **options)
    except TableauError as error:
        raise held.broken(f"holds numbers that make no table ({error})") from error
    except (ArgumentError, FileFormatError):
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise held.broken(f"is a file of {found.project} that does not fit its format ({error!r})") from error


def _check_numbers(options: dict[str, Any]) -> None:
    for name, value in options.items():
        kinds = int if name in ("order", "steps") else (int, float)
        if name in NUMBERS and value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise ArgumentError(f"{name}={value!r}: give a{' whole' * (kinds is int)} number")


def _recognised(held: Contents) -> Recognised:
    if (predictor := held.record("predictor", "model")) is not None:
        name = predictor.class_name
        if name == "AMED_predictor":
            raise FileFormatError(
                f"{held.path} is a predictor of AMED: a small network that chooses each sample's steps from the "
                "sample, which is no table. Read another sampler's file"
            )
        if name in PREDICTORS:
            project = "DyWeight" if name.startswith("DyWeight") else epd.NAMES[name]
            return Recognised(project, PREDICTORS[name])
    keys = set(cast(dict[Any, Any], held.held)) if isinstance(held.held, dict) else set[Any]()
    if held.kind == "archive":
        if "dyweight_weights_raw" in keys:
            return Recognised("DyWeight", dyweight.read_flux)
        if {"ema", "model", "step"} <= keys:
            return Recognised("GAS", gas.read)
        if "best_t_steps" in keys or not isinstance(held.held, dict | list | tuple):
            return Recognised("LD3", ld3.read)
        if any(str(k).startswith("source_sampler._raw_") for k in _state(held)):
            return Recognised("NeuralSolver", neural_solver.read)
        if isinstance(held.held, list | tuple) or keys & {"timesteps", "decisions", "decision"}:
            return Recognised("USF", _usf)
    elif (held.kind == "python" and keys) or "timedeltas" in keys:
        return Recognised("NeuralSolver", neural_solver.read)
    raise FileFormatError(
        f"{held.path} is no result of a project that is known here ({KNOWN}); tables of this library end in .json"
    )


def _state(held: Contents) -> set[Any]:
    state = held.held.get("state_dict")
    return set(cast(dict[Any, Any], state)) if isinstance(state, dict) else set()


def _usf(held: Contents, noise: NoiseSchedule | None) -> Tableau:
    if noise is None:
        raise ArgumentError(f"{held.path} does not hold the network's noise schedule: give noise= (--noise)")
    return SolverSchedule.from_usf(held.path, noise).tabulate(noise)
