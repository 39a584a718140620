"""Reference end points: right, cached by everything they depend on, resumable, the same in any batch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep import problems, solvers, times
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.noise import EDM
from fewstep.randomness import CalibrationSeeds, SelectionSeeds, unit_noise
from fewstep.search.cache import Cache, Probe, SeedRows, digest
from fewstep.search.judges import ImageJudge
from fewstep.search.objective import Scorer
from fewstep.search.teacher import Teacher, no_condition, reference_schedule

NOISE = EDM()
TABLE = solvers.dpmpp_2m(times.karras(NOISE, 8)).tabulate(NOISE)


class Shifted(Denoiser):
    """Gaussian data whose mean is the label; can be interrupted after a number of calls."""

    left = 10**9

    def __init__(self, factor: float = 1.0, fingerprint: str = "shifted") -> None:
        def fn(x: Tensor, t: object, label: Tensor | None) -> Tensor:
            mean = 0.0 if label is None else label.reshape(-1, 1).to(x)
            return factor * (mean + (x - mean) / (1 + float(t) ** 2))

        super().__init__(fn, noise=NOISE, shape=(3,), fingerprint=fingerprint)

    def __call__(self, x: Tensor, t: object, condition: object = None) -> Tensor:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().__call__(x, t, condition)


def labels(seeds: object) -> Tensor:
    return torch.tensor([seed % 10 for seed in seeds])


def test_end_points_are_the_exact_solution() -> None:
    """The reference run of 60 calls against the closed form of a Gaussian problem's ODE, to 0.1 %."""
    problem = problems.get("gaussian_8x8")
    seeds = SelectionSeeds(16)
    made = Teacher(problem.denoiser(), reference_schedule(NOISE).tabulate(NOISE))(seeds)
    start = 80 * unit_noise(list(seeds), problem.shape)
    exact = problem.ode_solution(start.double(), 80.0, 0.0)
    assert (made - exact).abs().max() < 1e-3 * exact.abs().max()


def test_condition_goes_with_its_seed() -> None:
    made = Teacher(Shifted(), TABLE, condition=labels)(CalibrationSeeds(40))
    assert ((made.mean(1) - torch.arange(40) % 10).abs() < 3).all() and made.shape == (40, 3)
    assert torch.allclose(
        made[7], Teacher(Shifted(), TABLE, condition=labels)(CalibrationSeeds(1, offset=7))[0], atol=1e-5
    )


def test_another_precision_of_the_network_is_made_anew(tmp_path: Path) -> None:
    nets = [Shifted() for _ in range(2)]
    nets[1].network_dtype = torch.bfloat16
    ends = [Teacher(net, TABLE, cache=tmp_path)(SelectionSeeds(8)) for net in nets]
    assert nets[1].evaluations == nets[0].evaluations and torch.equal(*ends)  # this one does not obey it
    judge = ImageJudge(lambda x: x.flatten(1).mean(1))
    judge.digest = "mean"
    for net in nets:
        scorer = Scorer(net, [judge], SelectionSeeds(8), condition=no_condition, cache=Cache(tmp_path))
        scorer.score(TABLE, 8)
    assert nets[1].evaluations == nets[0].evaluations


def test_made_once(tmp_path: Path) -> None:
    net = Shifted()
    teacher = Teacher(net, TABLE, condition=labels, cache=tmp_path, batch_size=16)
    first = teacher(SelectionSeeds(50))
    assert net.evaluations == 50 * 8 + 1  # and the question by which the cache knows the network
    assert torch.equal(teacher(SelectionSeeds(30)), first[:30]) and net.evaluations == 401
    later = Shifted()
    told: list[float] = []
    again = Teacher(later, TABLE, condition=labels, cache=tmp_path)(
        SelectionSeeds(70), lambda event: told.append(event.done)
    )
    assert torch.equal(again[:50], first) and later.evaluations == 20 * 8 + 1 and told[-1] == 70


@pytest.mark.parametrize("change", ["network", "table", "condition", "seeds"])
def test_anything_else_is_made_anew(change: str, tmp_path: Path) -> None:
    Teacher(Shifted(), TABLE, condition=labels, cache=tmp_path)(SelectionSeeds(8))
    net = Shifted(fingerprint="other" if change == "network" else "shifted")
    table = solvers.dpmpp_2m(times.karras(NOISE, 9)).tabulate(NOISE) if change == "table" else TABLE
    condition = (lambda seeds: labels(seeds) + 1) if change == "condition" else labels
    seeds = CalibrationSeeds(8) if change == "seeds" else SelectionSeeds(8)
    before = net.evaluations
    made = Teacher(net, table, condition=condition, cache=tmp_path)(seeds)
    assert net.evaluations - before >= 8 * table.nfe
    assert torch.equal(made, Teacher(Shifted(), table, condition=condition)(seeds))


def test_interrupted_and_resumed(tmp_path: Path) -> None:
    broken = Shifted()
    broken.left = 27  # three batches of 8 calls, and part of the fourth
    with pytest.raises(KeyboardInterrupt):
        Teacher(broken, TABLE, condition=labels, cache=tmp_path, batch_size=10)(SelectionSeeds(64))
    net = Shifted()
    made = Teacher(net, TABLE, condition=labels, cache=tmp_path, batch_size=10)(SelectionSeeds(64))
    assert net.evaluations == 34 * 8 + 1
    assert torch.equal(made, Teacher(Shifted(), TABLE, condition=labels, batch_size=10)(SelectionSeeds(64)))


def test_same_fingerprint_of_another_network_is_refused(tmp_path: Path) -> None:
    Teacher(Shifted(), TABLE, cache=tmp_path)(SelectionSeeds(4))
    with pytest.raises(DenoiserError, match="another network with the same fingerprint"):
        Teacher(Shifted(factor=0.9), TABLE, cache=tmp_path)(SelectionSeeds(4))


def test_stochastic_tables_are_refused() -> None:
    with pytest.raises(ArgumentError, match="draws noise"):
        Teacher(Shifted(), solvers.sde_dpmpp_1(times.karras(NOISE, 4)).tabulate(NOISE))


def test_digest_tells_everything_apart() -> None:
    a = torch.arange(4.0)
    others = [
        "x",
        1,
        1.5,
        None,
        [1, 2],
        a,
        a.double(),
        a.reshape(2, 2),
        {"k": a},
        (a, a),
        torch.tensor([0.0, 1.0, 2.0, 3.5]),
    ]
    assert len({digest(other) for other in others}) == len(others)
    assert digest(a, "x") == digest(a.clone(), "x") and digest(a, "x") != digest("x", a)


def test_seed_rows_in_any_order_and_number(tmp_path: Path) -> None:
    asked: list[int] = []

    def compute(seeds: list[int]) -> Tensor:
        asked.extend(seeds)
        return torch.tensor(seeds, dtype=torch.float64)[:, None] * 2

    probe = Probe(Shifted())
    rows = SeedRows(Cache(tmp_path), lambda seeds: f"r{seeds[0]}", compute, probe, chunk=4, batch=3)
    assert rows([9, 2, 3, 11, 2])[:, 0].tolist() == [18, 4, 6, 22, 4]
    assert rows(range(12))[:, 0].tolist() == [2 * k for k in range(12)]
    assert sorted(asked) == list(range(12))
    again = SeedRows(Cache(tmp_path), lambda seeds: f"r{seeds[0]}", compute, probe, chunk=4, batch=3)
    assert again([11, 0])[:, 0].tolist() == [22, 0] and len(asked) == 12
