"""Work on many samples in batches that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from fewstep.errors import DenoiserError

T = TypeVar("T")


def in_batches(
    run: Callable[[int, int], T], n: int, size: int | None = None, seeds: Sequence[int] | None = None
) -> Iterator[tuple[int, int, T]]:
    """`(lo, hi, run(lo, hi))` for samples 0..n in their order.

    A batch that does not fit in memory is halved until it does; later ones keep that size.

    Args:
        run: works on samples lo..hi; its result must not depend on how they were split.
        n: number of samples.
        size: largest batch; all samples at once by default.
        seeds: of the samples, for the messages.

    Raises:
        DenoiserError: a network's error, with the samples and seeds that it is about; or no memory for one sample.
    """
    lo, size = 0, min(size or n, n)
    while lo < n:
        hi = min(lo + size, n)
        try:
            done = run(lo, hi)
        except DenoiserError as error:
            if not error.rows:
                raise
            raise _with_seeds(error, seeds, lo) from error
        except (torch.OutOfMemoryError, MemoryError) as error:
            if size == 1:
                raise DenoiserError(
                    f"out of memory with a single sample (sample {lo}): use a smaller network, image or dtype"
                ) from error
            size = (size + 1) // 2
        else:
            yield lo, hi, done
            lo = hi


def _with_seeds(error: DenoiserError, seeds: Sequence[int] | None, lo: int) -> DenoiserError:
    """The error with the samples that it is about, counted over the whole call, and their seeds."""
    samples = tuple(lo + row for row in error.rows)
    about = f"samples {', '.join(map(str, samples[:8]))}"
    if seeds is not None:
        about += f", seeds {', '.join(str(seeds[k]) for k in samples[:8])}"
    return DenoiserError(f"{error} ({about})", time=error.time, rows=samples, sane=error.sane)
