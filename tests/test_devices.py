"""A network on several devices gives what one gives; here the devices are processors' threads, the code is the same."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import fewstep as fs
from fewstep import models, problems
from fewstep.denoiser import Denoiser, from_callable
from fewstep.devices import Spread, places_of, spread
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.guidance import guided
from fewstep.noise import EDM
from fewstep.randomness import unit_noise
from fewstep.search.gradient.losses import objective
from fewstep.search.gradient.objectives import Batch
from fewstep.search.gradient.slope import Slope
from fewstep.search.gradient.space import SPACES, Start
from fewstep.solvers import get

NOISE = EDM()


class Layers(torch.nn.Module):
    """Looks at x, t and the condition, and remembers the threads and rows of its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.Linear(5, 3, dtype=torch.float64)
        self.seen: list[tuple[str, int, bool, bool]] = []

    def forward(self, x: Tensor, t: Tensor, shift: Tensor, names: Any = None) -> Tensor:
        half = torch.is_autocast_enabled("cpu")
        self.seen.append((threading.current_thread().name, len(x), torch.is_grad_enabled(), half))
        return torch.tanh(self.layer(torch.cat([x, t[:, None], shift], 1)))


def copy(**options: Any) -> Denoiser:
    return from_callable(
        Layers(), prediction="x0", noise=NOISE, shape=(3,), dtype=torch.float64, check=False, **options
    )


def condition(n: int) -> dict[str, Any]:
    return {"shift": torch.linspace(-1, 1, n, dtype=torch.float64)[:, None], "names": "as it is"}


def seen(denoiser: Denoiser) -> list[tuple[str, int, bool, bool]]:
    module = denoiser.fn
    assert isinstance(module, Layers)
    return module.seen


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 7])
def test_outputs_are_those_of_one_network(rows: int) -> None:
    copies = [copy(), copy(), copy()]
    many = spread(copies)
    x = unit_noise(range(rows), (3,), dtype=torch.float64)
    torch.testing.assert_close(many(x, 2.0, condition(rows)), copies[0](x, 2.0, condition(rows)), rtol=0, atol=1e-15)
    shares = [sum(n for _, n, *_ in seen(c)) for c in copies]
    shares[0] -= rows  # its own call of all
    size = -(-rows // 3)
    assert shares == [min(size, max(0, rows - k * size)) for k in range(3)]
    names = [name for c in copies[1:] for name, *_ in seen(c)]
    assert all(name.startswith("fewstep-device") for name in names)


def test_calls_are_counted_once_and_rows_where_they_ran() -> None:
    copies = [guided(c, 2.0, null=condition(1)) for c in (copy(), copy())]
    many = spread(copies)
    many(unit_noise(range(5), (3,), dtype=torch.float64), 2.0, condition(5))
    assert (many.calls, many.evaluations, many.batch_cost) == (1, 10, 2)
    outside = spread([copy(), copy()])
    wrapped = guided(outside, 2.0, null=condition(1))
    wrapped(unit_noise(range(5), (3,), dtype=torch.float64), 2.0, condition(5))
    assert (wrapped.calls, outside.evaluations) == (1, 10)
    wrapped.reset_counters()
    assert (outside.calls, outside.evaluations) == (0, 0)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_one_network(recompute: bool) -> None:
    start = Start.of(get("dpmpp_2m")(fs.times.karras(NOISE, 3)), NOISE)
    noise = unit_noise(range(7), (3,), dtype=torch.float64)
    batch = Batch(noise * NOISE.sigma_max, noise.sin(), None, condition(7))
    copies = [copy(), copy()]
    found: list[list[Tensor]] = []
    for model in (copy(), spread(copies)):
        space = SPACES["joint"](start)
        slope = Slope(model, batch_size=4, checkpoint=recompute)
        loss, first = slope(space, objective("l2", features=None, reference=None, reference_features=None), batch)
        found.append([torch.tensor(loss), first, *(p.grad for p in space.parameters() if p.grad is not None)])
    assert len(found[0]) > 3
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-15)
    # Recomputing means that each copy runs its rows twice: activations were not kept in any thread.
    assert [sum(n for _, n, *_ in seen(c)) for c in copies] == [k * 3 * (1 + recompute) for k in (4, 3)]


def test_threads_have_the_callers_gradient_mode_and_precision() -> None:
    copies = [copy(), copy()]
    many, x = spread(copies), unit_noise(range(4), (3,), dtype=torch.float64)
    with torch.no_grad():
        many(x, 2.0, condition(4))
    with torch.autocast("cpu", torch.bfloat16):
        many(x, 2.0, condition(4))
    for c in copies:
        assert [(grad, half) for _, _, grad, half in seen(c)] == [(False, False), (True, True)]


def test_a_fault_names_rows_of_the_whole_batch() -> None:
    def network(x: Tensor, t: Any, condition: Any = None) -> Tensor:
        return torch.where(x[:, :1] > 0.5, torch.nan, x + float(t))

    copies = [Denoiser(network, noise=NOISE, shape=(3,), fingerprint="same") for _ in range(2)]
    x = torch.zeros(6, 3)
    x[4] = 1
    with pytest.raises(DenoiserError, match="from row 3 on") as caught:
        spread(copies)(x, 1.0)
    assert caught.value.rows == (4,)


def test_copies_must_be_copies() -> None:
    assert spread([one := copy()]) is one
    with pytest.raises(ArgumentError, match="empty"):
        spread([])
    other = problems.get("gaussian").denoiser(dtype=torch.float64)
    with pytest.raises(ArgumentError, match=r"denoisers\[1\] is not the network"):
        spread([copy(), other])
    assert spread([copy(), copy()]).fingerprint == copy().fingerprint


def test_several_devices_in_a_name() -> None:
    assert places_of("mnist", "cuda:0,cuda:1") == ("mnist", ["cuda:0", "cuda:1"])
    assert places_of("edm:a.pkl?device=cuda:0,cuda:1&trust-pickle", "cpu") == (
        "edm:a.pkl?trust-pickle=",
        ["cuda:0", "cuda:1"],
    )
    with pytest.raises(ArgumentError, match="has a gap"):
        models.load("mnist", device="cpu,")
    assert places_of("mnist?guidance=2", None) == ("mnist?guidance=2", [""])
    model = models.load("mnist?device=cpu,cpu", guidance=2.0)
    assert isinstance(model, Spread) and model.fingerprint == models.load("mnist", guidance=2.0).fingerprint
    seeds = fs.ReportSeeds(3)
    table = get("ddim")(fs.times.karras(model.noise, 3)).tabulate(model.noise)
    made = [
        fs.sample(m, table, seeds=seeds, condition=models.default_condition(m, seeds))
        for m in (model, models.load("mnist", guidance=2.0))
    ]
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-4)
    assert pytree.tree_leaves(models.default_condition(model, seeds))[0].tolist() == [s % 10 for s in seeds]
