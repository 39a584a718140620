"""Trajectories of a teacher, by seed: kept in shards as they are made, memory-mapped when they are read.

A shard holds the states and the network's outputs of a few seeds, time first, so that one time of all seeds is read
without the others. It is written whole or not at all, under a name that says which seeds, conditions and start images
it is of: a run that was killed goes on where it stopped, and processes that fill one folder at once can only do the
same work twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import ArgumentError, DenoiserError
from fewstep.randomness import CalibrationSeeds, SelectionSeeds
from fewstep.search.cache import Cache, Probe


@dataclass(eq=False)
class Shard:
    """Trajectories of some seeds.

    Attributes:
        seeds: b of them; token: names what they depend on besides the network and the table.
        states: `[T+1, b, *shape]`, a tensor or a slice of a file; outputs: the same with T, or None.
        probe, where: of a shard that was read; checked: whether it is known to be ours.
    """

    seeds: tuple[int, ...]
    token: str
    states: Any
    outputs: Any
    probe: Tensor | None = None
    where: Path | None = None
    checked: bool = False


class Trajectories:
    """Trajectories of seeds, in the order in which they were asked for.

    Attributes:
        seeds: one for each trajectory.
        times: `[T+1]` of the states, from noisy to clean; alpha, sigma: there.
        calls: network calls that one trajectory cost, whoever made it.
    """

    def __init__(
        self, seeds: Sequence[int], times: Tensor, alpha: Tensor, sigma: Tensor, calls: int, shards: Sequence[Shard]
    ) -> None:
        self.seeds, self.times, self.alpha, self.sigma, self.calls = tuple(seeds), times, alpha, sigma, calls
        place = {seed: (shard, row) for shard in reversed(shards) for row, seed in enumerate(shard.seeds)}
        self._rows: dict[Shard, list[tuple[int, int]]] = {}
        for k, seed in enumerate(self.seeds):
            shard, row = place[seed]
            self._rows.setdefault(shard, []).append((row, k))

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def cost(self) -> int:
        """Network calls that all of them cost, whether in this run or before."""
        return len(self) * self.calls

    def state(self, k: int) -> Tensor:
        """States `[B, *shape]` at `times[k]`; k may be negative. Reads this time alone."""
        return self._at(range(len(self.times))[k], lambda shard: shard.states)

    def output(self, k: int) -> Tensor:
        """The network's x0 `[B, *shape]` at `times[k]`, in the teacher's run; there is none at the last time.

        Errors: `ArgumentError` when the outputs were not asked for.
        """
        if any(shard.outputs is None for shard in self._rows):
            raise ArgumentError("these trajectories have no outputs: ask for them with outputs=True")
        return self._at(range(len(self.times) - 1)[k], lambda shard: shard.outputs)

    @property
    def states(self) -> Tensor:
        """All states `[B, T+1, *shape]`, in memory."""
        return torch.stack([self.state(k) for k in range(len(self.times))], 1)

    @property
    def outputs(self) -> Tensor:
        """All outputs `[B, T, *shape]`, in memory."""
        return torch.stack([self.output(k) for k in range(len(self.times) - 1)], 1)

    def batches(self, size: int) -> Iterator[Trajectories]:
        """The same trajectories in groups of up to `size`: what is larger than memory is worked on in turns."""
        for lo in range(0, len(self), size):
            part = self.seeds[lo : lo + size]
            yield Trajectories(part, self.times, self.alpha, self.sigma, self.calls, list(self._rows))

    def _at(self, k: int, of: Callable[[Shard], Any]) -> Tensor:
        parts: list[Tensor] = []
        order: list[int] = []
        for shard, pairs in self._rows.items():
            parts.append(of(shard)[k][[row for row, _ in pairs]])
            order += [place for _, place in pairs]
        whole = torch.cat(parts)
        return whole[torch.tensor(order, device="cpu").argsort()]


class Shelf:
    """Where the shards of one network and one table lie.

    Args:
        cache: its folder, or memory only.
        name: folder of the shards in the cache.
        identity: what the folder's name stands for, in words; shards that say something else are refused.
        token: `seeds -> name` of what their trajectories depend on besides.
        probe: guards the files.
    """

    def __init__(
        self, cache: Cache, name: str, identity: dict[str, Any], token: Callable[[Sequence[int]], str], probe: Probe
    ) -> None:
        self.folder = None if cache.folder is None else cache.folder / name
        self.identity, self.token, self.probe = identity, token, probe
        self._shards: list[Shard] = []
        self._seen: set[Path] = set()

    def covering(self, seeds: Sequence[int], *, outputs: bool) -> list[Shard]:
        """Shards of these seeds: those known so far, and those that have appeared on the disk."""
        self._look()
        wanted = set(seeds)
        return [
            shard
            for shard in self._shards
            if (shard.outputs is not None or not outputs) and not wanted.isdisjoint(shard.seeds) and self._ours(shard)
        ]

    def add(self, seeds: Sequence[int], states: Tensor, outputs: Tensor | None) -> None:
        """Keep new trajectories, in the folder where there is one."""
        token = self.token(seeds)
        if self.folder is None:
            self._shards.append(Shard(tuple(seeds), token, states, outputs, checked=True))
            return
        tensors = {"states": states, "probe": self.probe.answer()}
        tensors |= {} if outputs is None else {"outputs": outputs}
        kind = "report" if seeds[0] < CalibrationSeeds.first else "calibration"
        kind = "selection" if seeds[0] >= SelectionSeeds.first else kind
        name = f"{kind}-{seeds[0]}-{len(seeds)}-{token}{'' if outputs is None else '-x0'}"
        Cache(self.folder).write(name, tensors, {"seeds": list(seeds), "token": token, "identity": self.identity})

    def _look(self) -> None:
        if self.folder is None or not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in self._seen:
                shard = _opened(path, self.identity)
                if shard is not None:  # else it may be written anew
                    self._seen.add(path)
                    self._shards.append(shard)

    def _ours(self, shard: Shard) -> bool:
        """Whether the shard is of our conditions; refuses one that another network made."""
        if not shard.checked:
            if shard.token != self.token(shard.seeds):
                return False
            assert shard.probe is not None
            self.probe.check(shard.probe, shard.where)
            shard.checked = True
        return True


def _opened(path: Path, identity: dict[str, Any]) -> Shard | None:
    """The shard in a file, memory-mapped; None for one that was damaged by other hands.

    Errors: `DenoiserError` for one of another network, table or precision, naming what differs.
    """
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="pt")
        keys = set(file.keys())
        record = json.loads((file.metadata() or {})["record"])
        shard = Shard(
            tuple(record["seeds"]), record["token"], file.get_slice("states"),
            file.get_slice("outputs") if "outputs" in keys else None, file.get_tensor("probe"), path,
        )  # fmt: skip
        theirs: dict[str, Any] = record["identity"]
    except (SafetensorError, KeyError, ValueError, OSError):
        return None
    differ = [
        f"{key} {theirs.get(key)!r}, not {value!r}" for key, value in identity.items() if theirs.get(key) != value
    ]
    if differ:
        raise DenoiserError(
            f"{path} holds trajectories of another run ({'; '.join(differ)}): delete that file, or give another cache "
            "folder"
        )
    return shard
