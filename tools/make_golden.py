"""Write tests/golden: whole tables of other people's samplers, read by probing (numbers only).

    python tools/make_golden.py k_diffusion [SAMPLING.PY]   # k-diffusion 0.1.1.post1 alone, without its heavy imports
    python tools/make_golden.py diffusers                   # diffusers 0.42.1
    python tools/make_golden.py reference FOLDER            # the authors' single-file solvers, where FOLDER holds them

Run it where the hosts are installed (`pip install diffusers==0.42.1 scipy torchsde` and, without its dependencies,
`pip install --no-deps k-diffusion==0.1.1.post1`), with this package importable. The tables do not depend on anything in
this package but `fewstep.probe` and `fewstep.adapters`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.golden import hosts, store


def main() -> None:
    """Write what the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in hosts.WRITERS:
        raise SystemExit(__doc__)
    which, *rest = sys.argv[1:]
    for file, tables in hosts.WRITERS[which](*rest).items():
        store.write(file, tables)
        print(f"{file}: {len(tables)} tables")


if __name__ == "__main__":
    main()
