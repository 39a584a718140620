"""Teacher trajectories: right, kept as they are made, read by time, shared by processes, refused where they differ."""

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep import solvers, times
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.noise import EDM
from fewstep.randomness import CalibrationSeeds, SelectionSeeds
from fewstep.sampling import first_state, trajectory
from fewstep.search.teacher import Teacher, knots, reference_schedule
from tests.test_teacher import NOISE, TABLE, Shifted, labels

SEEDS = CalibrationSeeds(10)


def by_hand(seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    net = Shifted()
    points = list(trajectory(net, TABLE, first_state(net, TABLE, list(seeds)), condition=labels(seeds)))
    outputs = [point.output for point in points if isinstance(point.output, Tensor)]
    return torch.stack([point.state for point in points], 1), torch.stack(outputs, 1)


@pytest.mark.parametrize("kept", [True, False])
def test_states_and_outputs_are_those_of_the_run(kept: bool, tmp_path: Path) -> None:
    teacher = Teacher(Shifted(), TABLE, condition=labels, cache=tmp_path if kept else None, batch_size=4)
    made = teacher.trajectory(SEEDS)
    states, outputs = by_hand(SEEDS)
    assert torch.equal(made.times, TABLE.times) and torch.equal(teacher.times, made.times)
    assert torch.equal(made.states, states) and torch.equal(made.outputs, outputs)
    assert torch.equal(made.state(-1), states[:, -1]) and torch.equal(made.output(3), outputs[:, 3])
    picked = [SEEDS[7], SEEDS[2], SEEDS[9], SEEDS[2]]
    assert torch.equal(teacher.trajectory(picked).state(5), states[[7, 2, 9, 2], 5])
    assert torch.equal(torch.cat([part.states for part in made.batches(3)]), states)
    assert made.cost == 10 * 8 and len(made) == 10


def test_made_once_and_end_points_come_with_them(tmp_path: Path) -> None:
    net = Shifted()
    first = Teacher(net, TABLE, condition=labels, cache=tmp_path, batch_size=4).trajectory(SEEDS)
    assert net.evaluations == 10 * 8 + 1  # and the question by which the cache knows the network
    later = Shifted()
    again = Teacher(later, TABLE, condition=labels, cache=tmp_path)
    assert torch.equal(again.trajectory(SEEDS, outputs=False).states, first.states)
    assert torch.equal(again.endpoints(SEEDS), first.state(-1)) and later.evaluations == 1
    again.trajectory(CalibrationSeeds(13))
    assert later.evaluations == 1 + 3 * 8
    plain = Teacher(Shifted(), TABLE, cache=tmp_path).trajectory(SEEDS)  # another condition, another answer
    assert (plain.state(-1) - first.state(-1)).abs().max() > 1


def test_killed_work_goes_on(tmp_path: Path) -> None:
    net = Shifted()
    net.left = 20  # in the third batch
    with pytest.raises(KeyboardInterrupt):
        Teacher(net, TABLE, condition=labels, cache=tmp_path, batch_size=4).trajectory(SEEDS)
    later = Shifted()
    made = Teacher(later, TABLE, condition=labels, cache=tmp_path).trajectory(SEEDS)
    assert later.evaluations == 2 * 8 + 1 and torch.equal(made.states, by_hand(SEEDS)[0])


def test_out_of_memory_splits_the_batch() -> None:
    class Small(Shifted):
        def __call__(self, x: Tensor, t: object, condition: object = None) -> Tensor:
            if len(x) > 3:
                raise torch.OutOfMemoryError("pretended")
            return super().__call__(x, t, condition)

    made = Teacher(Small(), TABLE, condition=labels).trajectory(SEEDS)
    assert torch.equal(made.states, by_hand(SEEDS)[0])


def test_not_finite_is_named() -> None:
    def fn(x: Tensor, t: object, condition: object) -> Tensor:
        out = x / (1 + float(t) ** 2)  # type: ignore[arg-type]
        out[5] = torch.nan if float(t) < 1 else out[5]  # type: ignore[arg-type]
        return out

    for check in (True, False):
        net = Denoiser(fn, noise=NOISE, shape=(3,), fingerprint="nan", check_finite=check)
        with pytest.raises(DenoiserError, match="finite at time .*samples 5, seeds 1000000005") as error:
            Teacher(net, TABLE).trajectory(SEEDS)
        assert error.value.rows == (5,) and error.value.time is not None and error.value.time < 1


def test_another_network_or_precision_is_refused(tmp_path: Path) -> None:
    made = Teacher(Shifted(), TABLE, cache=tmp_path)
    made.trajectory(SEEDS)
    with pytest.raises(DenoiserError, match=r"differ by 11\.1%"):
        Teacher(Shifted(factor=0.9), TABLE, cache=tmp_path).trajectory(SEEDS)
    other = Shifted()
    other.dtype = torch.float64
    double = Teacher(other, TABLE, cache=tmp_path)
    assert double.trajectory(SEEDS).states.dtype == torch.float64  # beside the others
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert len(folders) == 2
    for path in folders[0].iterdir():
        (folders[1] / ("moved-" + path.name)).write_bytes(path.read_bytes())
    with pytest.raises(DenoiserError, match="dtype 'torch.float(32|64)', not 'torch.float(64|32)'"):
        for teacher in (made, double):
            teacher.trajectory(CalibrationSeeds(11))


def test_damaged_shards_are_made_again(tmp_path: Path) -> None:
    Teacher(Shifted(), TABLE, condition=labels, cache=tmp_path).trajectory(SEEDS)
    (shard,) = tmp_path.glob("trajectories-*/*.safetensors")
    shard.write_bytes(shard.read_bytes()[:200])
    assert torch.equal(
        Teacher(Shifted(), TABLE, condition=labels, cache=tmp_path).trajectory(SEEDS).states, by_hand(SEEDS)[0]
    )


def fill(folder: Path, first: int) -> None:
    teacher = Teacher(Shifted(), TABLE, condition=labels, cache=folder, batch_size=2)
    for k in (first, 1 - first):  # from both ends
        teacher.trajectory(CalibrationSeeds(20, offset=20 * k))


def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=fill, args=(tmp_path, k)) for k in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    net, seeds = Shifted(), CalibrationSeeds(40)
    made = Teacher(net, TABLE, condition=labels, cache=tmp_path).trajectory(seeds)
    assert torch.equal(made.states, by_hand(seeds)[0]) and net.evaluations == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".safetensors"]


def test_knots_leave_inner_nodes_out() -> None:
    grid = times.karras(NOISE, 4)
    for name in ("heun", "dpm_2", "unipc", "dpmpp_2m"):
        table = solvers.get(name)(grid).tabulate(NOISE)
        found = knots(table)
        assert torch.equal(table.times[[row for row, _ in found]], grid)
        assert all(table.evaluated[row] for _, row in found[:-1])
    assert [row for row, _ in knots(solvers.heun(grid).tabulate(NOISE))] == [0, 2, 4, 6, 7]


def test_states_of_a_fine_run_are_on_the_exact_path() -> None:
    """Gaussian data of variance 1: x(sigma) is x(80) sqrt((1 + sigma^2) / (1 + 80^2))."""
    net = Denoiser(lambda x, t, c: x / (1 + float(t) ** 2), noise=EDM(), shape=(3,), fingerprint="unit")
    made = Teacher(net, reference_schedule(EDM()).tabulate(EDM())).trajectory(SelectionSeeds(4))
    scale = ((1 + made.times**2) / (1 + 80.0**2)).sqrt()
    exact = made.state(0).double()[:, None] * scale[None, :, None]
    assert ((made.states - exact).abs().amax((0, 2)) < 2e-3 * exact.abs().amax((0, 2))).all()


def test_tables_without_every_output_and_networks_with_two() -> None:
    free = solvers.get("ddim")(times.karras(NOISE, 4))
    table = type(free)(free.times, free.steps, afs="unit").tabulate(NOISE)
    with pytest.raises(ArgumentError, match="outputs=False"):
        Teacher(Shifted(), table).trajectory(SEEDS)
    assert Teacher(Shifted(), table).trajectory(SEEDS, outputs=False).states.shape == (10, 5, 3)
    two = Denoiser(lambda x, t, c: (x, x), noise=NOISE, shape=(3,), channels=2, fingerprint="two")
    with pytest.raises(ArgumentError, match="wrap it with guidance"):
        Teacher(two, TABLE).trajectory(SEEDS)
