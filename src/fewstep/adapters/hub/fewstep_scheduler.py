"""`FewStepScheduler`: a few-step sampler that was tabulated before, for any pipeline of diffusers.

This file is complete: it needs torch, numpy and diffusers. Copied into the `scheduler` folder of a repository, it is
loaded by `from_pretrained(..., trust_remote_code=True)`; with fewstep installed, import it from `fewstep.diffusers`.

A sampler is a table: state i + 1 is a weighted sum of the states and network outputs so far, of fresh noise, and of a
constant. Everything that depends on the noise schedule, the solver and what the network predicts is in those weights,
so that `step` only adds. States are what the network takes as its input, so that nothing has to scale them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

logger = logging.get_logger(__name__)
FORMAT, VERSION = "fewstep.scheduler", 1
_FLOW = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"]


class _Row(NamedTuple):
    """Weights of one new state: on older states, on outputs, on unit normals, and what is added."""

    states: dict[int, float]
    outputs: dict[int, float]
    noise: dict[int, float]
    shift: float


class _Step(NamedTuple):
    """One row as `step` wants it: weights of the current state and output, `(slot, weight)` of what is kept from
    before, noise columns, the constant; `(slot, on_state, on_output)` of what is kept for later, slots to forget.
    """

    on_state: float
    on_output: float
    reads: tuple[tuple[int, float], ...]
    noise: tuple[tuple[int, float], ...]
    shift: float
    keeps: tuple[tuple[int, float, float], ...]
    forget: tuple[int, ...]


class _Table(NamedTuple):
    """A record, read and checked."""

    times: list[float]
    alpha: list[float]
    sigma: list[float]
    start: float
    rows: list[_Row]
    starts: dict[int, dict[int, _Row]]
    made_for: dict[str, Any]


# --------------------------------------------------------------------------------------------- reading a record
def _fail(what: str) -> ValueError:
    return ValueError(f"damaged fewstep record: {what}. Save the table again, or download the file again")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _fail(f"{where} is {str(value)[:40]!r}, not a finite number")
    return float(value)


def _part(record: Any, name: str, kind: Any, where: str) -> Any:
    value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, str):
        raise _fail(f"{where} has no usable {name!r} (found {str(value)[:40]!r})")
    return value


def _weights(record: Any, name: str, width: int, where: str) -> dict[int, float]:
    found: dict[int, float] = {}
    for key, value in _part(record, name, Mapping, where).items():
        column = int(key) if str(key).isascii() and str(key).isdigit() and len(str(key)) < 6 else -1
        if not 0 <= column < width:
            raise _fail(f"{where} reads {name}[{str(key)[:20]}], which does not exist yet")
        found[column] = _number(value, f"{where}, {name}[{column}]")
    return {column: weight for column, weight in found.items() if weight}


def _row(record: Any, i: int, where: str) -> _Row:
    states, outputs = (_weights(record, name, i + 1, where) for name in ("states", "outputs"))
    noise = _weights(record, "noise", 100_000, where)
    return _Row(states, outputs, noise, _number(record.get("shift", 0.0), f"{where}, shift"))


def _read(record: Any) -> _Table:
    """A record of the config, checked as a whole."""
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        raise _fail(f"it is no {FORMAT!r}")
    version = record.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= VERSION:
        raise ValueError(
            f"fewstep record of version {str(version)[:20]}; this file reads up to {VERSION}: update fewstep"
        )
    rows, points = (_part(record, name, (list, tuple), "the record") for name in ("rows", "points"))
    if not rows or len(points) != len(rows) + 1:
        raise _fail(f"{len(rows)} rows and {len(points)} points do not fit together")
    read = [_row(row, i, f"row {i}") for i, row in enumerate(rows)]
    starts: dict[int, dict[int, _Row]] = {}
    for key, changes in _part(record, "starts", Mapping, "the record").items():
        if str(key) not in map(str, range(1, len(rows))) or not isinstance(changes, Mapping):
            raise _fail(f"start {str(key)[:20]} does not exist")
        if any(str(row) not in map(str, range(int(key), len(rows))) for row in changes):
            raise _fail(f"start {key} changes rows before it")
        starts[int(key)] = {int(i): _row(row, int(i), f"start {key}, row {i}") for i, row in changes.items()}
    levels = {
        name: [_number(_part(p, name, (int, float), f"point {i}"), f"point {i}") for i, p in enumerate(points)]
        for name in ("alpha", "sigma")
    }
    times = [_number(_part(p, "time", (int, float), f"point {i}"), f"point {i}") for i, p in enumerate(points[:-1])]
    made_for = dict(_part(record, "made_for", Mapping, "the record"))
    for key, value in _part({"alphas_cumprod": {}, **made_for}, "alphas_cumprod", Mapping, "made_for").items():
        if not str(key).isascii() or not str(key).isdigit() or not 0 < _number(value, "alphas_cumprod") < 1:
            raise _fail(f"alphas_cumprod[{str(key)[:20]}] is {str(value)[:20]!r}")
    if made_for.get("boundary_ratio") is not None:
        _number(made_for["boundary_ratio"], "boundary_ratio")
    if not isinstance(made_for.get("shape", []), (list, tuple)):
        raise _fail("the shape that it was made for is no list")
    return _Table(
        times, levels["alpha"], levels["sigma"], _number(record.get("start"), "start"), read, starts, made_for
    )


# --------------------------------------------------------------------------------------------- from rows to steps
def _steps(table: _Table, begin: int) -> tuple[_Step, ...]:
    """The steps of a run that begins at a point."""
    changed = table.starts.get(begin, {})
    rows = {i: changed.get(i, table.rows[i]) for i in range(begin, len(table.rows))}
    readers: dict[int, list[tuple[int, float, float]]] = {}
    for i, row in rows.items():
        for j in sorted({*row.states, *row.outputs} - {i}):
            readers.setdefault(j, []).append((i, row.states.get(j, 0.0), row.outputs.get(j, 0.0)))
    if any(j < begin for j in readers):
        raise ValueError(
            f"this table cannot start at its call {begin}: it needs what the calls before have found. Possible: "
            f"{[0, *sorted(table.starts)]}; choose `strength` accordingly, or make a table for that noise level"
        )
    keeps: dict[int, list[tuple[int, float, float]]] = {}
    reads: dict[int, list[tuple[int, float]]] = {i: [] for i in rows}
    last: dict[int, int] = {}
    for j, wanted in readers.items():
        for slot, on_state, on_output, weights in _kept(j, wanted):
            keeps.setdefault(j, []).append((slot, on_state, on_output))
            for i, weight in weights:
                reads[i].append((slot, weight))
                last[slot] = max(last.get(slot, 0), i)
    drawn = [m for row in rows.values() for m in row.noise]
    if len(set(drawn)) != len(drawn):
        raise ValueError("two rows of this table read the same noise, which a pipeline cannot do: tabulate it stepwise")
    return tuple(_step(i, row, reads[i], keeps.get(i, []), last) for i, row in rows.items())


def _step(
    i: int, row: _Row, reads: list[tuple[int, float]], keeps: list[tuple[int, float, float]], last: dict[int, int]
) -> _Step:
    return _Step(
        row.states.get(i, 0.0), row.outputs.get(i, 0.0), tuple(reads), tuple(sorted(row.noise.items())), row.shift,
        tuple(keeps), tuple(slot for slot, reader in last.items() if reader == i),
    )  # fmt: skip


def _kept(j: int, wanted: list[tuple[int, float, float]]) -> list[tuple[int, float, float, list[tuple[int, float]]]]:
    """What to keep of point j: `(slot, on_state, on_output, [(row, weight)])`.

    Multistep methods read one mixture of an old point's state and output (its x0, or its noise), up to a factor. That
    mixture is a tensor of our own, so that a network may reuse the memory of its output (CUDA graphs do).
    """
    _, p, q = max(wanted, key=lambda w: abs(w[1]) + abs(w[2]))
    if all(abs(a * q - b * p) <= 1e-12 * (abs(a) + abs(b)) * (abs(p) + abs(q)) for _, a, b in wanted):
        size = p if abs(p) * 1e3 >= abs(q) else q
        along = 1 if size == p else 2
        return [(2 * j, p / size, q / size, [(w[0], w[along]) for w in wanted])]
    return [
        (2 * j, 1.0, 0.0, [(i, a) for i, a, _ in wanted if a]),
        (2 * j + 1, 0.0, 1.0, [(i, b) for i, _, b in wanted if b]),
    ]


def _alphas_cumprod(config: Any) -> torch.Tensor:
    """The table of a variance-preserving noise schedule as diffusers makes it, in float64."""
    n, kind = config["num_train_timesteps"], config["beta_schedule"]
    first, last = config["beta_start"], config["beta_end"]
    if config["trained_betas"] is not None:
        betas = torch.tensor(list(config["trained_betas"]), dtype=torch.float64, device="cpu")
    elif kind == "linear":
        betas = torch.linspace(first, last, n, dtype=torch.float64, device="cpu")
    elif kind == "scaled_linear":
        betas = torch.linspace(first**0.5, last**0.5, n, dtype=torch.float64, device="cpu") ** 2
    elif kind == "squaredcos_cap_v2":
        bar = torch.cos((torch.arange(n + 1, dtype=torch.float64, device="cpu") / n + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp_max(0.999)
    else:
        raise ValueError(f"beta_schedule={kind!r} is not known: give trained_betas, the list of its betas")
    bar = torch.cumprod(1 - betas, 0)
    if config["rescale_betas_zero_snr"]:
        root = bar.sqrt()
        bar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return bar


def _refuse_mismatch(made_for: Mapping[str, Any], family: str, config: Any, bar: torch.Tensor | None) -> None:
    """A table belongs to one family of networks, one prediction, one noise schedule."""
    for name, here in (
        ("family", family),
        ("num_train_timesteps", config["num_train_timesteps"]),
        ("prediction_type", config["prediction_type"]),
    ):
        if made_for.get(name) != here:
            raise ValueError(
                f"the table was made for {name}={made_for.get(name)!r}, this pipeline has {here!r}: run "
                "`FewStepScheduler.from_config(pipe.scheduler.config, tableau=...)` with a table of this model"
            )
    for index, level in (made_for.get("alphas_cumprod") or {}).items():
        here = float(bar[int(index)]) if bar is not None and int(index) < len(bar) else math.nan
        if not abs(here - _number(level, "alphas_cumprod")) <= 1e-4 * min(level, 1 - level) + 1e-9:
            raise ValueError(
                f"the table was made for another noise schedule: alphas_cumprod[{index}] is {level:.6g} there and "
                f"{here:.6g} in this pipeline (other betas?). Make a table for this model"
            )


def _described(config: Mapping[str, Any]) -> dict[str, Any]:
    """What another scheduler's configuration says of the network: its family and what it predicts."""
    if config.get("invert_sigmas"):
        raise ValueError("invert_sigmas=True: time runs the other way in this pipeline, which tables do not support")
    if config.get("clip_sample") or config.get("thresholding"):
        logger.warning(
            "the replaced scheduler clips the network's x0 (clip_sample, thresholding), which no table can do"
        )
    kind, diffusion = config.get("prediction_type") or "epsilon", "beta_schedule" in config or "beta_start" in config
    if config.get("use_flow_sigmas") or kind == "flow_prediction" or ("shift" in config and not diffusion):
        return {"family": "flow", "prediction_type": "flow_prediction"}
    if config.get("timestep_type") == "continuous":
        return {"family": "continuous", "prediction_type": kind}
    if not diffusion and "sigma_data" not in config:
        raise ValueError("this scheduler's configuration has neither betas nor a shift nor sigma_data: say family=")
    return {"family": "vp" if diffusion else "edm", "prediction_type": kind}


def _records(tableau: Any, config: Mapping[str, Any]) -> list[Any]:
    """Records for the config: as they come, or made of whatever else fewstep knows as a table."""
    several = list(tableau) if isinstance(tableau, (list, tuple)) else [tableau]
    if tableau is None or not several:
        raise ValueError("no table: give tableau=, a Tableau, what `optimize` found, or the path of its file")
    if all(isinstance(one, Mapping) and one.get("format") == FORMAT for one in several):
        return several
    try:
        from fewstep.adapters.diffusers_record import records
    except ImportError as error:
        raise ImportError(
            "tables that are not part of a saved scheduler yet need fewstep: pip install fewstep"
        ) from error
    return records(several, config)


class FewStepScheduler(SchedulerMixin, ConfigMixin):
    """Runs tabulated samplers in a pipeline: `FewStepScheduler.from_config(pipe.scheduler.config, tableau=table)`.

    Args:
        tableau: a table or several, of different numbers of calls; `num_inference_steps` chooses among them. As a
            `Tableau`, a search's result, the path of either's file, or a record that an earlier scheduler saved.
        num_train_timesteps, prediction_type, beta_start, beta_end, beta_schedule, trained_betas,
            rescale_betas_zero_snr: of the network, as in diffusers' own schedulers. They do not change the table; a
            table that was made for others is refused.
        family: "vp", "flow", "edm" or "continuous" (SVD); `from_config` finds it out.
        boundary_ratio: of a pipeline with two experts (Wan 2.2: `pipe.config.boundary_ratio`). A table whose calls
            were on other sides of it is refused.

    Raises:
        ValueError: a damaged table, one of another model, or one that a pipeline cannot run; says why.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers] + _FLOW
    order = 1

    @register_to_config
    def __init__(
        self,
        tableau: Any = None,
        num_train_timesteps: int = 1000,
        prediction_type: str | None = None,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        rescale_betas_zero_snr: bool = False,
        family: str | None = None,
        boundary_ratio: float | None = None,
    ) -> None:
        records = _records(tableau, self.config)
        tables = [_read(record) for record in records]
        family = family or str(tables[0].made_for.get("family"))
        self.register_to_config(
            tableau=records, family=family, prediction_type=prediction_type or tables[0].made_for.get("prediction_type")
        )
        self._family, self._trained = family, float(num_train_timesteps)
        bar = _alphas_cumprod(self.config) if family == "vp" else None
        for table in tables:
            _refuse_mismatch(table.made_for, family, self.config, bar)
            self._check_experts(boundary_ratio, table)
        self._tables = {len(table.rows): table for table in tables}
        if len(self._tables) != len(tables):
            raise ValueError("two tables have the same number of calls: a scheduler chooses among its tables by it")
        if bar is not None:
            self.alphas_cumprod = bar.float()
        self._plans: dict[tuple[int, int], tuple[Any, ...]] = {}
        self._use(tables[0], None)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler for the network that another scheduler's config describes; see `ConfigMixin.from_config`."""
        known = {name: value for name, value in dict(config).items() if name != "_use_default_values"}
        if "family" not in {*known, *kwargs}:  # another scheduler's
            known |= _described(known)
        if "tableau" in kwargs:
            kwargs["tableau"] = _records(kwargs["tableau"], {**known, **kwargs})
        return super().from_config(known, return_unused_kwargs, **kwargs)

    # ------------------------------------------------------------------------------------------- before the loop
    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Choose the table with this number of network calls, and begin anew.

        Args:
            num_inference_steps: network calls; by default those of the only table.
            device: of `timesteps`.
            timesteps, sigmas: accepted where they are what a pipeline passes by itself, or the table's own.
            mu: accepted and not used: a table's times are fixed.

        Raises:
            ValueError: no table has that number of calls, or the times are somebody else's.
        """
        given = timesteps if sigmas is None else sigmas
        n = num_inference_steps if given is None else len(given)
        table = self._tables.get(next(iter(self._tables)) if n is None and len(self._tables) == 1 else n)  # type: ignore[arg-type]
        if table is None:
            raise ValueError(
                f"no table makes {n} network calls: call the pipeline with num_inference_steps="
                f"{' or '.join(map(str, sorted(self._tables)))}, or add a table with that many"
            )
        for asked, own, unit in ((sigmas, self._ratios(table)[:-1], 1.0), (timesteps, table.times, self._trained)):
            if asked is not None and not self._usual(np.asarray(torch.as_tensor(asked).cpu(), float) / unit, own, unit):
                raise ValueError(
                    "custom timesteps= or sigmas= cannot change a table, whose weights belong to its times: leave them "
                    "out, or make a table for them"
                )
        self._use(table, device)

    def _usual(self, asked: Any, own: list[float], unit: float) -> bool:
        """Whether times in [0, 1] are the table's own, or one of the lists that pipelines pass when nobody asks."""
        n, small = len(asked), 1 / self._trained
        usual = ((1.0, 1 / n, 1e-6), (0.999, 0.999 / n, 1e-6), (1.0, small, 1.01 * small))
        return bool(np.abs(asked - np.asarray(own) / unit).max() <= 1e-5) or any(
            np.abs(asked - np.linspace(first, last, n)).max() <= near for first, last, near in usual
        )

    def _ratios(self, table: _Table) -> list[float]:
        """What `sigmas` is: sigma of flow models, else sigma / alpha."""
        flow = self._family == "flow"
        return [s if flow else s / a if a else math.inf for a, s in zip(table.alpha, table.sigma, strict=True)]

    def _use(self, table: _Table, device: Any) -> None:
        self._table, self._times, self.num_inference_steps = table, table.times, len(table.rows)
        whole = self._family == "vp" and all(t == int(t) for t in table.times)
        self.timesteps = torch.tensor(
            table.times, dtype=torch.int64 if whole else torch.float32, device=device or "cpu"
        )
        self.sigmas = torch.tensor(self._ratios(table), dtype=torch.float32, device="cpu")
        self.init_noise_sigma = table.start
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._held: dict[int, torch.Tensor] = {}

    @property
    def begin_index(self) -> int | None:
        """The network call that a pipeline begins with; None until it says."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """The network call whose output the next `step` takes; None before the first."""
        return self._step_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin with a later call (image-to-image). What earlier calls would have found is replaced by lower order."""
        self._plan = self._planned(begin_index)
        self._begin_index = begin_index

    def _planned(self, begin: int) -> tuple[Any, ...]:
        n = len(self._table.rows)
        if not 0 <= begin < n:
            raise ValueError(
                f"begin_index={begin}: this table makes {n} calls; image-to-image needs strength >= {1 / n:.3g}"
            )
        if (n, begin) not in self._plans:
            self._plans[n, begin] = (None,) * begin + _steps(self._table, begin)
        return self._plans[n, begin]

    def check_experts(self, boundary_ratio: float | None) -> None:
        """Refuse a boundary between two experts that puts a network call on another side than it was made for."""
        for table in self._tables.values():
            self._check_experts(boundary_ratio, table)

    def _check_experts(self, boundary_ratio: float | None, table: _Table) -> None:
        made = table.made_for.get("boundary_ratio")
        if made is None or boundary_ratio is None:
            return
        # The pipeline compares float32 times.
        sides = [[np.float32(t) >= ratio * self._trained for t in table.times] for ratio in (made, boundary_ratio)]
        if sides[0] != sides[1]:
            raise ValueError(
                f"the table was made for boundary_ratio={made}, where {sum(sides[0])} of {len(table.times)} calls are "
                f"the high-noise expert's; with {boundary_ratio} it is {sum(sides[1])}: make a table for this model"
            )

    def strength(self, calls: int) -> float:
        """The `strength` with which an image-to-image pipeline makes this many of the table's calls."""
        n = len(self._table.rows)
        calls = min(calls, n)
        near = calls / n
        # Stable Diffusion's pipelines round n * strength down, SD3's, Flux's and Qwen's up; Wan is a flow and down.
        for strength in (near, math.nextafter(near, 2), math.nextafter(near, 0)):
            if int(n * strength) == calls == n - int(n - n * strength):
                return strength
        return (calls - 0.5 if self._family == "flow" else calls + 0.5) / n  # never up to 21 calls

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample itself: states are kept as the network takes them."""
        return sample

    # ------------------------------------------------------------------------------------------------- the loop
    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The next state. `sample` is the state, also where the pipeline has edited it since the last step.

        Args:
            model_output: what the network predicts at `sample`, guidance included.
            timestep: used once, to find out where a pipeline begins that does not say.
            sample: the state, as the network has seen it. 16-bit states are summed in float32.
            generator: of a stochastic table's noise; a list has one for each sample.
            return_dict: whether to return a `SchedulerOutput` or a tuple.
        """
        i = self._step_index
        if i is None:
            i = self._first(timestep, sample)
        try:
            on_state, on_output, reads, noise, shift, keeps, forget = self._plan[i]
        except IndexError:
            raise ValueError(f"all {i} steps of this table are done: call set_timesteps before the next run") from None
        if model_output.shape != sample.shape:
            model_output = self._mean(model_output, sample)
        held, dtype = self._held, sample.dtype
        wide = sample if dtype.itemsize >= 4 else sample.float()
        if on_state == 1.0:
            new = torch.add(wide, model_output, alpha=on_output)
        elif 0.5 <= on_state <= 2.0:  # as exact as a product there, which costs twice as much: its factor is a tensor
            new = torch.add(wide, wide, alpha=on_state - 1.0).add_(model_output, alpha=on_output)
        else:
            new = torch.mul(wide, on_state).add_(model_output, alpha=on_output)
        for slot, weight in reads:
            new.add_(held[slot], alpha=weight)
        if noise or shift:
            new = self._noised(new, noise, shift, generator)
        for slot, state_share, output_share in keeps:
            if state_share == 1.0:
                held[slot] = torch.add(wide, model_output, alpha=output_share)
            else:
                held[slot] = torch.mul(model_output, output_share).add_(wide, alpha=state_share)
        for slot in forget:
            del held[slot]
        self._step_index = i + 1
        if new.dtype != dtype:
            new = new.to(dtype)
        return SchedulerOutput(prev_sample=new) if return_dict else (new,)

    def _first(self, timestep: Any, sample: torch.Tensor) -> int:
        """The call that a run begins with."""
        shape = self._table.made_for.get("shape")
        if shape is not None and list(shape) != list(sample.shape[1:]):
            logger.warning(
                f"this table was optimised for latents of shape {list(shape)}, and runs on {list(sample.shape[1:])}"
            )
        if self._begin_index is None:
            begin = 0 if torch.compiler.is_compiling() else self._index(timestep)
            self._plan = self._planned(begin)
            return begin
        return self._begin_index

    def _index(self, timestep: Any) -> int:
        """Which call a timestep belongs to: by its place in `timesteps`, else by its value."""
        if isinstance(timestep, torch.Tensor):
            if timestep.untyped_storage().data_ptr() == self.timesteps.untyped_storage().data_ptr():
                return int(timestep.storage_offset())
            timestep = timestep.reshape(-1)[0].item()
        gaps = [abs(t - timestep) for t in self.timesteps.tolist()]
        if min(gaps) > 1e-3:
            raise ValueError(f"timestep {timestep} is none of this table's: {self.timesteps.tolist()}")
        return gaps.index(min(gaps))

    @staticmethod
    def _mean(model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Networks that learn variances give them as further channels."""
        if model_output.ndim > 1 and model_output.shape[1] == 2 * sample.shape[1]:
            return model_output[:, : sample.shape[1]]
        raise ValueError(
            f"the network's output {tuple(model_output.shape)} does not fit the state {tuple(sample.shape)}"
        )

    @staticmethod
    def _noised(new: torch.Tensor, noise: Any, shift: float, generator: Any) -> torch.Tensor:
        for _, weight in noise:
            new.add_(randn_tensor(new.shape, generator=generator, device=new.device, dtype=new.dtype), alpha=weight)
        return new.add_(shift) if shift else new

    # ------------------------------------------------------------------------------------------- image-to-image
    def _levels(self, timesteps: torch.Tensor) -> tuple[Any, Any]:
        """The state's alpha and sigma at each timestep: floats where they are the run's own."""
        i = self._begin_index if self._step_index is None else self._step_index
        if i is not None:
            return self._table.alpha[i], self._table.sigma[i]
        t = timesteps.reshape(-1).to(device="cpu", dtype=torch.float64)
        if self._family == "vp":
            bar = self.alphas_cumprod.double()
            low = t.long().clamp(0, len(bar) - 2)
            bar = bar[low] + (t - low) * (bar[low + 1] - bar[low])
            return bar.sqrt(), (1 - bar).sqrt()
        if self._family == "flow":
            return 1 - t / self._trained, t / self._trained
        raise ValueError(
            "add_noise outside a run is for variance-preserving and flow models: call set_begin_index first"
        )

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """`alpha x0 + sigma noise` at the run's present call, or at any timesteps `[B]` outside a run (training)."""
        alpha, sigma = self._levels(timesteps)
        if isinstance(alpha, torch.Tensor):
            shape = (-1,) + (1,) * (original_samples.ndim - 1)
            alpha, sigma = (v.to(original_samples.device, torch.float32).reshape(shape) for v in (alpha, sigma))
        wide = torch.promote_types(original_samples.dtype, torch.float32)
        return (original_samples.to(wide) * alpha + noise.to(wide) * sigma).to(original_samples.dtype)

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`add_noise` as pipelines of flow models call it."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return int(self._trained)
