"""Few-step samplers for pretrained diffusion and flow models: find the best for your network, save it, run it.

The public face. Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fewstep import metrics as metrics
    from fewstep import noise as noise
    from fewstep import problems as problems
    from fewstep import search as search
    from fewstep import solvers as solvers
    from fewstep import times as times
    from fewstep.adapters.networks import from_edm as from_edm
    from fewstep.adapters.networks import from_guided_diffusion as from_guided_diffusion
    from fewstep.adapters.networks import from_k_diffusion as from_k_diffusion
    from fewstep.adapters.pipelines.build import from_diffusers as from_diffusers
    from fewstep.denoiser import Denoiser as Denoiser
    from fewstep.denoiser import from_callable as from_callable
    from fewstep.devices import spread as spread
    from fewstep.found import Found as Found
    from fewstep.many import FoundMany as FoundMany
    from fewstep.many import optimize_many as optimize_many
    from fewstep.models import load as load
    from fewstep.noise import NoiseSchedule as NoiseSchedule
    from fewstep.optimizing import optimize as optimize
    from fewstep.peers import from_peer as from_peer
    from fewstep.randomness import CalibrationSeeds as CalibrationSeeds
    from fewstep.randomness import ReportSeeds as ReportSeeds
    from fewstep.randomness import SelectionSeeds as SelectionSeeds
    from fewstep.rules import SolverSchedule as SolverSchedule
    from fewstep.rules import Step as Step
    from fewstep.sampling import sample as sample
    from fewstep.sampling import trajectory as trajectory
    from fewstep.tableau import Tableau as Tableau
    from fewstep.trace import from_sampler as from_sampler

_FROM = {
    "Denoiser": "denoiser", "from_callable": "denoiser",
    "from_diffusers": "adapters.pipelines.build", "load": "models", "NoiseSchedule": "noise",
    "Found": "found", "FoundMany": "many", "optimize": "optimizing", "optimize_many": "many",
    "CalibrationSeeds": "randomness", "ReportSeeds": "randomness", "SelectionSeeds": "randomness",
    "SolverSchedule": "rules", "Step": "rules", "sample": "sampling",
    "from_edm": "adapters.networks", "from_guided_diffusion": "adapters.networks",
    "from_k_diffusion": "adapters.networks", "trajectory": "sampling", "Tableau": "tableau", "from_sampler": "trace",
    "from_peer": "peers", "spread": "devices",
}  # fmt: skip
_MODULES = ("metrics", "noise", "problems", "search", "solvers", "times")

__all__ = [*_FROM, *_MODULES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _FROM:
        value = getattr(import_module(f"fewstep.{_FROM[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return import_module(f"fewstep.{name}")
    raise AttributeError(f"module 'fewstep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
