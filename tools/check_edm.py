"""Compare the EDM networks of this package with the authors' code, on the same random weights.

    python tools/check_edm.py FOLDER            # FOLDER: a checkout of github.com/NVlabs/edm
    python tools/check_edm.py FOLDER --golden   # write tests/edm_outputs.json instead: some outputs of the small ones,
                                                # and checksums of all names and shapes

Prints the largest difference of any output entry for every released architecture and for small ones of the same kinds,
beside the largest entry. Needs what the authors' code needs (`pip install requests`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fewstep.networks.edm import build
from tests.edm_networks import FULL, SMALL, Config, inputs, names, seeded

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "edm_outputs.json"
KEPT = 48


def original(theirs: Any, config: Config) -> Any:
    """The authors' network with weights from the names' seeds."""
    arguments = dict(config)
    network = getattr(theirs, arguments.pop("class_name"))(**arguments).eval()
    network.load_state_dict(seeded(network.state_dict().items()), strict=True)
    return network


def compare(theirs: Any) -> None:
    """Print the differences."""
    for name, config in (SMALL | FULL).items():
        network = original(theirs, config)
        x, sigma, labels = inputs(config, 5 if name in SMALL else 3)
        expected = network(x, sigma, labels)
        found = build(config, network.state_dict())(x, sigma, labels)
        count = sum(p.numel() for p in network.parameters())
        gap, size = float((found - expected).abs().max()), float(expected.abs().max())
        print(f"{name:34} {count:>11,} weights   largest difference {gap:.1e}   largest entry {size:.3g}", flush=True)


def write(theirs: Any) -> None:
    """Write what the tests compare with."""
    lines: list[str] = []
    for name, config in (SMALL | FULL).items():
        network = original(theirs, config)
        record: dict[str, Any] = {"names": names(network.state_dict())}
        if name in SMALL:
            flat = network(*inputs(config)).flatten()
            record["outputs"] = [float(f"{v:.7g}") for v in flat[:: len(flat) // KEPT][:KEPT].tolist()]
        lines.append(f"{json.dumps(name)}: {json.dumps(record)}")
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


@torch.no_grad()
def main() -> None:
    """Compare, or write."""
    if len(sys.argv) < 2 or not (Path(sys.argv[1]) / "training" / "networks.py").is_file():
        raise SystemExit(__doc__)
    sys.path.insert(0, sys.argv[1])
    import training.networks as theirs

    (write if "--golden" in sys.argv else compare)(theirs)


if __name__ == "__main__":
    main()
