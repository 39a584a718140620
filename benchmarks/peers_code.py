"""The code of GITS's and LD3's authors, imported from a folder of theirs and run on a `Denoiser` in EDM's coordinates.

Nothing of it is kept here. Their modules have names like `utils` and `models`; they are imported for the length of a
`with` and forgotten after it. What they import and do not need here (LPIPS, a writer of gifs) is replaced by stand-ins.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from fewstep import from_peer, solvers
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.metrics import Features
from fewstep.noise import EDM
from fewstep.randomness import unit_noise
from fewstep.search.trajectories import Shard, Trajectories
from fewstep.tableau import Tableau

HOMES = {
    "gits": ("gits_utils.py", "gits-main", "https://github.com/zju-pi/diff-sampler"),
    "ld3": ("trainer.py", "", "https://github.com/vinhsuhi/LD3"),
}
"""By method: a file that the authors' folder has, the folder of it in their repository, and the repository."""


def folder_of(method: str, code: Path | None) -> Path:
    """Where the authors' modules lie in the folder that was given, which may be that or the whole repository.

    Errors: `ArgumentError` that says where to get them.
    """
    file, inner, home = HOMES[method]
    for place in () if code is None else (code, code / inner):
        if (place / file).is_file():
            return place.resolve()
    given = "--code is missing" if code is None else f"--code {code} has no {file}"
    raise ArgumentError(f"{given}: give a clone of {home}" + (f", or its folder {inner}" if inner else ""))


@contextlib.contextmanager
def imported(folder: Path, names: Sequence[str], stand_ins: dict[str, ModuleType]) -> Iterator[list[Any]]:
    """Modules of a folder by name, importable (and known to pickle) until the end of the `with`."""
    before = dict(sys.modules)
    sys.modules.update(stand_ins)
    sys.path.insert(0, str(folder))
    try:
        yield [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(folder))
        for name in [*stand_ins, *(sys.modules.keys() - before.keys() - stand_ins.keys())]:
            spec = getattr(sys.modules[name], "__spec__", None)
            places = [spec.origin or "", *(spec.submodule_search_locations or [])] if spec else []
            if name in stand_ins or any(place.startswith(str(folder)) for place in places):
                del sys.modules[name]
        sys.modules.update({name: before[name] for name in stand_ins if name in before})


def stand_in(name: str, **held: Any) -> ModuleType:
    """A module that has no more than what is given."""
    module = ModuleType(name)
    vars(module).update(held)
    return module


def require_edm(model: Denoiser) -> None:
    """Refuse a network in other coordinates than EDM's, in which both projects write their samplers."""
    if not isinstance(model.noise, EDM) or len(model.shape) != 3 or model.shape[1] != model.shape[2]:
        raise ArgumentError("the authors' samplers are for square images in EDM's coordinates: give MODEL?noise=edm")


# ------------------------------------------------------------------------------------------------------------- GITS
class EdmNetwork:
    """A denoiser as GITS's code calls EDM's networks: `(x, sigma, class_labels one-hot) -> x0`."""

    def __init__(self, model: Denoiser, classes: int) -> None:
        self.model, self.label_dim = model, classes
        self.img_channels, self.img_resolution = model.shape[0], model.shape[1]
        self.sigma_min, self.sigma_max = model.noise.t_min, model.noise.t_max

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        condition = None if class_labels is None or not self.label_dim else class_labels.argmax(1)
        return self.model(x, torch.as_tensor(sigma).reshape(-1)[0], condition)


@dataclass(frozen=True)
class Gits:
    """What GITS's own code found.

    Attributes:
        times: `[n+1]` by number of steps; knots: their places in the teacher's grid.
        grid, costs: that grid `[61]`, and the matrix of costs on it.
        states, noises: of the teacher's trajectories, `[61, B, *shape]` and `[60, B, *shape]`.
    """

    times: dict[int, Tensor]
    knots: dict[int, list[int]]
    grid: Tensor
    costs: Tensor
    states: Tensor
    noises: Tensor

    def trajectories(self) -> Trajectories:
        """The same trajectories as this library has them, with x0 instead of noise."""
        x0 = self.states[:-1] - self.grid[:-1].reshape(-1, 1, 1, 1, 1) * self.noises
        seeds = tuple(range(self.states.shape[1]))
        grid = self.grid.double()
        shard = Shard(seeds, "theirs", self.states, x0, checked=True)
        return Trajectories(seeds, grid, torch.ones_like(grid), grid, len(grid) - 1, [shard])


GITS_SETTINGS = {
    "solver": "ipndm", "solver_tea": "ipndm", "max_order": 4, "metric": "dev", "coeff": 1.15, "num_steps_tea": 61,
    "schedule_type": "polynomial", "schedule_rho": 7, "afs": False, "dataset_name": "cifar10", "model_source": "edm",
    "prompt": None, "denoise_to_zero": False,
}  # fmt: skip
"""Their defaults and the flags of their README; the name of the data only says what kind of network it is."""


def gits_found(folder: Path, model: Denoiser, classes: int, nfes: Sequence[int], count: int, seed: int) -> Gits:
    """GITS's own teacher trajectories, costs and dynamic programming.

    Trajectories and costs are made once, for the largest number of steps; their `dp` gives the paths of the others.
    """
    net = EdmNetwork(model, classes)
    held: dict[str, Any] = {}
    with imported(folder, ["gits_utils"], {}) as (code,):
        choose, plan = code.get_sampler_fn, code.dp

        def watched(*args: Any, **kwargs: Any) -> Any:
            sampler, coefficients = choose(*args, **kwargs)

            def run(*a: Any, **k: Any) -> Any:
                held["states"], held["noises"] = made = sampler(*a, **k)
                return made

            return run, coefficients

        def kept(costs: Any, *args: Any) -> list[int]:
            held["costs"] = costs
            return plan(costs, *args)

        code.get_sampler_fn, code.dp = watched, kept
        torch.manual_seed(seed)
        # One process: their sum over processes is the matrix itself.
        with patch.object(torch.distributed, "all_reduce", lambda _: None):
            code.get_dp_list(
                net, torch.device("cpu"), num_warmup=count, max_batch_size=count, num_steps=max(nfes) + 1,
                sigma_min=net.sigma_min, sigma_max=net.sigma_max, **GITS_SETTINGS,
            )  # fmt: skip
        total = GITS_SETTINGS["num_steps_tea"]
        knots = {n: plan(held["costs"], n + 1, total, GITS_SETTINGS["coeff"]) for n in nfes}
        grid = code.solver_utils.get_schedule(
            total, net.sigma_min, net.sigma_max, device=torch.device("cpu"), schedule_type="polynomial", schedule_rho=7
        )
    times = {n: grid[path] for n, path in knots.items()}
    return Gits(times, knots, grid, torch.as_tensor(held["costs"]), held["states"], held["noises"])


def gits_table(times: Tensor, noise: EDM) -> Tableau:
    """Their iPNDM sampler on these times as a table."""
    return solvers.ipndm(times.double(), order=4).tabulate(noise)


def gits_samples(folder: Path, model: Denoiser, classes: int, times: Tensor, seeds: Sequence[int], of: Any) -> Tensor:
    """Samples of their own iPNDM sampler, from the start noise of the seeds, with labels `of(seeds)`."""
    with imported(folder, ["solvers"], {}) as (code,), torch.no_grad():
        labels = None if not classes else torch.eye(classes)[of(seeds)]
        return code.ipndm_sampler(
            EdmNetwork(model, classes), unit_noise(seeds, model.shape), labels, t_steps=times, max_order=4
        )


# -------------------------------------------------------------------------------------------------------------- LD3
@dataclass(frozen=True)
class Pairs:
    """Start noises of unit variance, the teacher's end points and labels, `[n, ...]` each."""

    noise: Tensor
    target: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Ld3:
    """What LD3's own trainer found: its saved times as a table, updates, and the samples that its solver makes."""

    table: Tableau
    updates: int
    samples: Tensor


class FeatureDistance(nn.Module):
    """In place of LPIPS: mean squared difference in the features of a judge, `[B]`."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.features(x) - self.features(y)).square().flatten(1).mean(1)


def ld3_found(
    folder: Path, model: Denoiser, features: Features, train: Pairs, valid: Pairs, nfe: int, seed: int, checked: Pairs
) -> Ld3:
    """LD3's own training, with the settings of its `configs/cifar10.yml`: UniPC of order 3, decoupled times, the soft
    teacher, two rounds of the times and five of both. Validation is on 10 pairs until it stalls and then on all, as the
    command of its README has it. `checked` starts what is compared with the table.
    """
    stand_ins = {
        "lpips": stand_in("lpips", LPIPS=lambda **_: FeatureDistance(features)),
        "imageio": stand_in("imageio"),
        "matplotlib.pyplot": stand_in("matplotlib.pyplot"),
    }
    names = ["trainer", "utils", "noise_schedulers", "dataset"]
    with (
        tempfile.TemporaryDirectory() as place,
        imported(folder, names, stand_ins) as (trainer, utils, schedulers, dataset),
        patch.object(torch.Tensor, "cuda", lambda self, *_, **__: self),
        patch.object(trainer, "save_gif", lambda _: None),
        patch.object(trainer.LD3Trainer, "_visual_times", lambda _: None),
        torch.enable_grad(),
        quiet(),
    ):
        args = _ld3_arguments(folder, utils, model, nfe, seed)
        schedule = schedulers.NoiseScheduleVE("edm", model.noise.t_min, model.noise.t_max)
        solver, steps, extra = utils.get_solvers(args.solver_name, nfe, args.order, schedule, args.unipc_variant)
        net = noise_of(model)
        utils.set_seed_everything(seed)
        made = _ld3_trainer(trainer, args, net, schedule, solver, steps, extra, model, place, [
            _ld3_data(dataset, pairs) for pairs in (train, valid)
        ])  # fmt: skip
        made.train(args.training_rounds_v1, args.training_rounds_v2)
        file = Path(place) / "best_v2.pt"
        table = from_peer(file, solver=args.solver_name, order=args.order, variant=args.unipc_variant)
        with torch.no_grad():
            times, told = solver.prepare_learn_timesteps(str(file), device=torch.device("cpu"))
            samples = solver.sample_simple(
                model_fn=net, x=schedule.prior_transformation(checked.noise), timesteps=times, timesteps2=told,
                order=args.order, NFEs=steps, condition=checked.labels, **extra,
            )  # fmt: skip
    return Ld3(table, made.cur_iter, samples.float())


def _ld3_arguments(folder: Path, utils: Any, model: Denoiser, nfe: int, seed: int) -> Namespace:
    import yaml

    config = yaml.safe_load((folder / "configs" / "cifar10.yml").read_text())
    args = Namespace(**{**config, "steps": nfe, "seed": seed, "gits_ts": None, "use_gits": False, "match_prior": False})
    args.main_valid_batch_size = 10
    return utils.adjust_hyper(args, model.shape[1], model.shape[0])


def _ld3_data(dataset: Any, pairs: Pairs) -> Any:
    count = len(pairs.noise)
    labels = [None] * count if pairs.labels is None else [*pairs.labels]
    noises = [*pairs.noise.clone()]
    return dataset.LD3Dataset([n.clone() for n in noises], noises, [*pairs.target], labels, [None] * count)


def _ld3_trainer(
    trainer: Any, args: Namespace, net: Any, schedule: Any, solver: Any, steps: int, extra: Any, model: Denoiser,
    place: str, data: list[Any],
) -> Any:  # fmt: skip
    same = (
        "lr_time_1", "lr_time_2", "shift_lr", "shift_lr_decay", "min_lr_time_1", "min_lr_time_2", "win_rate", "patient",
        "lr_time_decay", "momentum_time_1", "weight_decay_time_1", "loss_type", "no_v1", "match_prior",
    )  # fmt: skip
    training = trainer.TrainingConfig(
        train_data=data[0], valid_data=data[1], train_batch_size=args.main_train_batch_size,
        valid_batch_size=args.main_valid_batch_size, visualize=False, prior_timesteps=None,
        **{name: getattr(args, name) for name in same},
    )  # fmt: skip
    return trainer.LD3Trainer(
        trainer.ModelConfig(
            net=net, decoding_fn=lambda x: x, noise_schedule=schedule, solver=solver, solver_name=args.solver_name,
            order=args.order, steps=steps, prior_bound=args.prior_bound, resolution=model.shape[1],
            channels=model.shape[0], time_mode=args.time_mode, solver_extra_params=extra, snapshot_path=place,
            device=torch.device("cpu"),
        ),
        training,
    )  # fmt: skip


def noise_of(model: Denoiser) -> Any:
    """A denoiser as LD3's code calls networks: `(x, t [B], condition, unconditional) -> noise`, in float64."""

    def noise(x: Tensor, t: Tensor, condition: Tensor | None = None, _: Any = None) -> Tensor:
        sigma = t.reshape(-1)[0]
        return ((x - model(x.float(), sigma, condition)) / sigma).double()

    return noise


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the lines that a training logs, one for each of its losses."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
