"""Files of EDM networks: safetensors, and the `.pkl` files as they were released (decoded, never executed).

python -m fewstep.networks.edm_file edm-cifar10-32x32-uncond-vp.pkl cifar10.safetensors --trust-pickle

writes a pickle's network as safetensors, which needs no trust from then on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from fewstep.errors import ArgumentError, FileFormatError
from fewstep.files import atomic_write_bytes
from fewstep.networks.edm import Preconditioned, build
from fewstep.networks.edm_pickle import read_pickle

KIND, SCHEMA = "fewstep.edm", "1"
WHY = (
    "is a pickle, a format that can carry code and run it when it is read. This reader runs nothing and takes only "
    "tensors and plain values, but asks that you know where the file comes from: say so with trust_pickle=True "
    "(--trust-pickle on the command line, ?trust-pickle behind the name), or convert it once with "
    "`python -m fewstep.networks.edm_file FILE.pkl FILE.safetensors --trust-pickle`"
)


@dataclass(frozen=True)
class EdmFile:
    """What a file of a network says: `config` as `fewstep.networks.edm.build` takes it, and all tensors by name."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def network(self) -> Preconditioned:
        """The network, in float32 on the CPU.

        Raises:
            FileFormatError: a configuration that is not known, or tensors that do not fit it exactly.
        """
        return build(self.config, self.tensors)

    def save(self, path: str | Path) -> Path:
        """Write as safetensors, with the configuration in its metadata; returns the path."""
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ArgumentError(f"{path} would be written as safetensors: give it a name that ends in .safetensors")
        metadata = {"kind": KIND, "schema": SCHEMA, "config": json.dumps(dict(self.config))}
        return atomic_write_bytes(path, to_bytes({k: v.contiguous() for k, v in self.tensors.items()}, metadata))


def read(path: str | Path, *, trust_pickle: bool = False) -> EdmFile:
    """A network's file: safetensors of `EdmFile.save`, or a `.pkl` in the format of the released ones.

    Args:
        path: of the file; everything that does not end in .safetensors is taken for a pickle.
        trust_pickle: read a pickle. Nothing in it is executed and nothing but tensors, plain containers and records of
            modules is accepted, but a pickle is never read unasked.

    Raises:
        ArgumentError: no such file, or a pickle without `trust_pickle`.
        FileFormatError: a damaged file, one of another kind, or a pickle that asks for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise ArgumentError(f"no file {path}: give an EDM network's .safetensors or .pkl")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if not trust_pickle:
        raise ArgumentError(f"{path} {WHY}")
    return EdmFile(*read_pickle(path))


def convert(source: str | Path, target: str | Path, *, trust_pickle: bool = False) -> Path:
    """Read a network's file, check that its network can be built, and write it as safetensors; returns the path."""
    held = read(source, trust_pickle=trust_pickle)
    held.network()
    return held.save(target)


def _read_safetensors(path: Path) -> EdmFile:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise FileFormatError(f"{path} cannot be read as safetensors ({error}); convert it again") from error
    if metadata.get("kind") != KIND or metadata.get("schema") != SCHEMA:
        raise FileFormatError(
            f"{path} is no EDM network of this version (kind {metadata.get('kind')}, schema {metadata.get('schema')}); "
            "make it with fewstep.networks.edm_file"
        )
    try:
        config = json.loads(metadata["config"])
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"{path} has no readable configuration ({error}); convert it again") from error
    if not isinstance(config, dict):
        raise FileFormatError(f"{path} has a configuration that is no dictionary; convert it again")
    return EdmFile(cast(dict[str, Any], config), tensors)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a .pkl (or .safetensors) of an EDM network")
    parser.add_argument("target", type=Path, help="the .safetensors to write")
    parser.add_argument("--trust-pickle", action="store_true", help="decode a pickle whose origin you know")
    args = parser.parse_args()
    print(convert(args.source, args.target, trust_pickle=args.trust_pickle))


if __name__ == "__main__":
    main()
