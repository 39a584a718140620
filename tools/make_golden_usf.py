"""Write tests/usf_outputs.json: what USF's own sampler and DPM-Solver-v3's make of test networks (numbers only).

    python tools/make_golden_usf.py FOLDER [SCHEDULE.pth ...]

FOLDER holds their code, see tests/usf_reference.py. The schedules are released ones without v3 steps; their tables are
read by unit impulses.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fewstep.usf_file import read_pth
from tests import usf_reference


def main() -> None:
    """Write the file."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    folder, *schedules = map(Path, sys.argv[1:])
    usf_reference.write(folder, {path.stem: read_pth(path) for path in schedules})
    print(usf_reference.FILE)


if __name__ == "__main__":
    main()
