"""Files of statistics: ours (safetensors with a JSON record), and those of DPM-Solver-v3's authors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import noise as noise_schedules
from fewstep.ems.statistics import EMS, Rule, log_snr_grid
from fewstep.errors import FileFormatError
from fewstep.files import atomic_write_bytes
from fewstep.noise import NoiseSchedule

FORMAT, VERSION = "fewstep.ems", 1
PARTS = ("lams", "l", "s", "b")


def save(ems: EMS, path: Path) -> Path:
    """Write tensors in float64 and the record in the file's metadata; all or nothing."""
    from safetensors.torch import save as pack

    record: dict[str, Any] = {"format": FORMAT, "version": VERSION, "rule": ems.rule, "digest": ems.digest}
    record |= {"noise": None if ems.noise is None else ems.noise.to_dict(), "about": ems.record}
    tensors = {name: getattr(ems, name).contiguous() for name in PARTS}
    return atomic_write_bytes(path, pack(tensors, {"record": json.dumps(record)}))


def load(path: Path) -> EMS:
    """Read and check what `save` wrote.

    Raises:
        FileFormatError: a damaged, foreign or newer file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["record"])
            grid, linear, growth, drift = (file.get_tensor(name) for name in PARTS)
        if record["format"] != FORMAT or not 1 <= int(record["version"]) <= VERSION:
            raise FileFormatError(f"{path} is no statistics file of this version: update fewstep, or compute them anew")
        noise = None if record["noise"] is None else noise_schedules.from_dict(record["noise"])
        found = EMS(grid, linear, growth, drift, record["rule"], noise, record["about"])
        wanted = record["digest"]
    except FileFormatError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise FileFormatError(f"{path} holds no statistics ({error}): give a file of EMS.save") from error
    if found.digest != wanted:
        raise FileFormatError(f"{path} is damaged: its numbers are not those that were written")
    return found


def from_npz(folder: Path, noise: NoiseSchedule, start: float | None, end: float | None, rule: Rule) -> EMS:
    """`l.npz` and `sb.npz` of a folder; see `EMS.from_npz`."""
    import numpy as np

    arrays: dict[str, Tensor] = {}
    for file, names in (("l.npz", ("l",)), ("sb.npz", ("s", "b"))):
        try:
            with np.load(folder / file, allow_pickle=False) as found:
                arrays |= {name: torch.from_numpy(found[name].astype(np.float64)) for name in names}
        except (OSError, KeyError, ValueError) as error:
            raise FileFormatError(
                f"{folder / file} cannot be read ({error}): give the folder of DPM-Solver-v3's statistics, with l.npz "
                "and sb.npz"
            ) from error
    lams = log_snr_grid(noise, len(arrays["l"]), start=start, end=end)
    about = {"source": "npz of DPM-Solver-v3's authors"}
    return EMS(lams, arrays["l"], arrays["s"], arrays["b"], rule=rule, noise=noise, record=about)
