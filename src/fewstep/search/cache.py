"""A folder of results that cost network calls, named by a digest of everything they depend on.

A file is written whole or not at all, and only ever holds complete rows, so an interrupted run leaves what it had
finished. Each file also holds the network's answer to one fixed question: two networks may carry the same fingerprint
(a user's own function has no weights to hash), and their results must not be mixed in silence.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fewstep.errors import DenoiserError
from fewstep.files import atomic_write_bytes
from fewstep.progress import Event, Report, silent
from fewstep.randomness import CalibrationSeeds, unit_noise

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser

PROBE_TOLERANCE = 1e-2
"""Relative change of the probe that another device or precision may cause; another network changes it more."""
PROBE_SEED = CalibrationSeeds(1, offset=999_999_999)

State = tuple[dict[str, Tensor], dict[str, Any]]


def digest(*parts: Any) -> str:
    """Sixteen hexadecimal digits that name the parts: JSON values, tensors, and pytrees of both."""
    total = hashlib.sha256()
    for part in parts:
        leaves, layout = pytree.tree_flatten(part)
        total.update(str(layout).encode())
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                total.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
                total.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            else:
                total.update(json.dumps(leaf, default=repr).encode())
    return total.hexdigest()[:16]


def precision(denoiser: Denoiser) -> tuple[str, ...]:
    """Names what a network computes in; nothing for float32, which is usual."""
    used = (denoiser.dtype, getattr(denoiser, "network_dtype", None))
    return tuple(str(dtype) for dtype in used if dtype not in (None, torch.float32))


class Cache:
    """Named sets of tensors with a JSON record each, in a folder; with `folder=None` nothing is kept."""

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def path(self, name: str) -> Path | None:
        """Where the entry lies, or None without a folder."""
        return None if self.folder is None else self.folder / f"{name}.safetensors"

    def read(self, name: str) -> State | None:
        """The entry's tensors and record, or None if there is none (or it was damaged by other hands)."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.path(name)
        if path is None:
            return None
        try:
            # In one piece: a reader that opens the file twice, as safe_open does, may meet two files where another
            # process replaces it.
            data = path.read_bytes()
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            return load(data), json.loads(header["__metadata__"]["record"])
        except (SafetensorError, KeyError, TypeError, ValueError, OSError):
            return None

    def write(self, name: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Keep the entry, atomically."""
        from safetensors.torch import save

        path = self.path(name)
        if path is not None:
            whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            atomic_write_bytes(path, save(whole, {"record": json.dumps(record)}))


class SeedRows:
    """Rows that cost network calls, one for each seed, computed once and kept by seed in files of `chunk` seeds.

    Args:
        cache: where they are kept; in memory in any case.
        name: names the file of given seeds, by a digest of everything that their rows depend on.
        compute: `seeds -> [len(seeds), ...]` rows on the CPU.
        probe: protects the files.
        chunk: seeds in a file.
        batch: seeds computed at a time; after each batch the file is written.
    """

    def __init__(
        self,
        cache: Cache,
        name: Callable[[range], str],
        compute: Callable[[list[int]], Tensor],
        probe: Probe,
        *,
        chunk: int,
        batch: int,
    ) -> None:
        self.cache, self.name, self.compute, self.probe, self.chunk, self.batch = (
            cache,
            name,
            compute,
            probe,
            chunk,
            batch,
        )
        self._held: dict[int, dict[int, Tensor]] = {}

    def __call__(self, seeds: Sequence[int], progress: Report = silent) -> Tensor:
        """The rows of `seeds`, in their order; `progress` is told how many are there, as a teacher's."""
        done = 0
        for first, group in itertools.groupby(seeds, lambda seed: seed - seed % self.chunk):
            wanted = list(group)
            held = self._load(first)
            missing = [seed for seed in wanted if seed not in held]
            done += len(wanted) - len(missing)
            if len(missing) < len(wanted):
                progress(Event("teacher", done, len(seeds)))
            for start in range(0, len(missing), self.batch):
                part = missing[start : start + self.batch]
                held.update(zip(part, self.compute(part).unbind(0), strict=True))
                self._save(first, held)
                done += len(part)
                progress(Event("teacher", done, len(seeds)))
        return torch.stack([self._held[seed - seed % self.chunk][seed] for seed in seeds])

    def put(self, seeds: Sequence[int], values: Tensor) -> None:
        """Keep rows that were computed elsewhere."""
        for first in dict.fromkeys(seed - seed % self.chunk for seed in seeds):
            held = self._load(first)
            new = {s: row for s, row in zip(seeds, values.unbind(0), strict=True) if s - s % self.chunk == first}
            if not new.keys() <= held.keys():
                held.update(new)
                self._save(first, held)

    def _load(self, first: int) -> dict[int, Tensor]:
        if first not in self._held:
            self._held[first] = self._stored(first)
        return self._held[first]

    def _stored(self, first: int) -> dict[int, Tensor]:
        name = "" if self.cache.folder is None else self.name(range(first, first + self.chunk))
        stored = self.cache.read(name)
        if stored is None:
            return {}
        tensors, record = stored
        self.probe.check(tensors["probe"], self.cache.path(name))
        return dict(zip(record["seeds"], tensors["rows"].unbind(0), strict=True))

    def _save(self, first: int, held: dict[int, Tensor]) -> None:
        if self.cache.folder is not None:
            for seed, row in self._stored(first).items():  # what another process has added meanwhile
                held.setdefault(seed, row)
            tensors = {"rows": torch.stack(list(held.values())), "probe": self.probe.answer()}
            self.cache.write(self.name(range(first, first + self.chunk)), tensors, {"seeds": list(held)})


class Probe:
    """The network's answer to one fixed question, asked once, and only when there is a cache to protect.

    Args:
        denoiser: the network.
        condition: of one sample.
    """

    def __init__(self, denoiser: Denoiser, condition: Any = None) -> None:
        self.denoiser, self.condition = denoiser, condition
        self._answer: Tensor | None = None

    def answer(self) -> Tensor:
        """x0 at the noisiest time for one fixed unit normal, float32 on the CPU."""
        if self._answer is None:
            net = self.denoiser
            noise = unit_noise(PROBE_SEED, tuple(net.shape)) * net.noise.sigma(net.noise.t_max).item()
            with torch.no_grad():
                out = net(noise.to(device=net.device, dtype=net.dtype), net.noise.t_max, self.condition)
            self._answer = (out if isinstance(out, Tensor) else torch.cat(tuple(out))).float().cpu()
        return self._answer

    def check(self, stored: Tensor, where: object) -> None:
        """Refuse a cache entry that another network made.

        Raises:
            DenoiserError: the answers differ.
        """
        now = self.answer()
        same_shape = now.shape == stored.shape
        gap = ((now - stored).abs().max() / now.abs().max().clamp_min(1e-6)).item() if same_shape else math.inf
        if not gap <= PROBE_TOLERANCE:
            raise DenoiserError(
                f"{where} was made by another network with the same fingerprint {self.denoiser.fingerprint!r}: their "
                f"answers to one question differ by {gap:.1%} of the largest entry (up to {PROBE_TOLERANCE:.0%} may be "
                "due to the machine): delete that file, give another cache folder, or give the network its own "
                "fingerprint"
            )
