"""The cache of network calls, shared by processes."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import torch

from fewstep.search.cache import Cache


def test_reading_while_another_process_replaces_the_file(tmp_path: Path) -> None:
    """What is read is one of the two files, never the header of one and the numbers of the other."""
    cache, stop = Cache(tmp_path), threading.Event()
    files: list[bytes] = []
    for n in (3, 500):
        cache.write("a", {"rows": torch.full((n, 64), float(n)), "probe": torch.full((7,), 7.0)}, {"n": n})
        files.append((tmp_path / "a.safetensors").read_bytes())

    def replace() -> None:
        for data in itertools.cycle(files):
            (tmp_path / "new").write_bytes(data)
            (tmp_path / "new").replace(tmp_path / "a.safetensors")
            if stop.is_set():
                return

    other = threading.Thread(target=replace)
    other.start()
    try:
        for _ in range(500):
            found = cache.read("a")
            assert found is not None
            tensors, record = found
            assert (tensors["probe"] == 7).all() and len(tensors["rows"]) == record["n"]
            assert (tensors["rows"] == record["n"]).all()
    finally:
        stop.set()
        other.join()
