"""EDM networks: equal to the authors' code, read from their files without running them, denoisers like any other."""

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep import models, networks
from fewstep.errors import ArgumentError, FileFormatError
from fewstep.networks import edm_file, edm_pickle
from fewstep.networks.edm import PRECONDITIONERS, build, noise_levels
from fewstep.networks.edm_file import EdmFile
from fewstep.noise import EDM
from fewstep.sampling import sample
from fewstep.solvers import dpmpp_2m
from fewstep.times import karras

from .edm_networks import FULL, SMALL, EasyDict, inputs, names, randn, seeded_network, their_modules, write_pickle

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "edm_outputs.json").read_text())
PLAIN = SMALL["ddpmpp"]


# -------------------------------------------------------------------------------------------------- the networks
@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_the_authors(name: str) -> None:
    """Outputs of the authors' own code on the same weights, with noise levels from 0.002 to 80 (tools/check_edm.py)."""
    config, expected = SMALL[name], torch.tensor(GOLDEN[name]["outputs"])
    out = seeded_network(config)(*inputs(config)).flatten()
    some = out[:: len(out) // len(expected)][: len(expected)]
    # The baselines multiply the network's output by the noise level, so that theirs are large.
    assert float((some - expected).abs().max()) < 5e-6 * max(1.0, float(expected.abs().max()))
    assert names(build(config).state_dict()) == GOLDEN[name]["names"]


@pytest.mark.parametrize("name", FULL)
def test_released_networks_have_the_authors_tensors(name: str) -> None:
    arguments = dict(FULL[name])
    with torch.device("meta"):
        network = PRECONDITIONERS[arguments.pop("class_name")](**arguments)
    assert names(network.state_dict()) == GOLDEN[name]["names"]


def test_noise_levels_of_improved_ddpm() -> None:
    """`u` solves its own recursion: adjacent levels differ by the ratio of a cosine schedule, at least C_1."""
    u = noise_levels(1000, 0.001, 0.008).double()
    assert u[-1] == 0
    assert bool((u.diff() < 0).all())
    bar = (0.5 * torch.pi * torch.arange(1001) / 1000 / 1.008).sin().double() ** 2
    ratio = (u[:-1] ** 2 + 1) / (u[1:] ** 2 + 1)
    assert float((1 / ratio - (bar[:-1] / bar[1:]).clamp_min(0.001)).abs().max()) < 1e-5


def test_what_a_file_must_not_say() -> None:
    for change, words in [
        ({"class_name": "Evil"}, "class 'Evil' is no network of EDM"),
        ({"model_type": "VisionTransformer"}, "model_type='VisionTransformer'"),
        ({"encoder_type": "skip"}, "encoder_type='skip' is not supported"),
        ({"depth": 3}, "depth"),
        ({"channel_mult": []}, "not a EDMPrecond"),
        ({"model_channels": 24}, "size mismatch"),
        ({"num_blocks": 2}, "Missing key"),
        ({"augment_dim": 0}, "Unexpected key"),
    ]:
        with pytest.raises(FileFormatError, match=words):
            build(PLAIN | change, build(PLAIN).state_dict())


# ------------------------------------------------------------------------------------------------------ the files
@pytest.mark.parametrize(
    ("name", "protocol"), [("ddpmpp-cond", 2), ("ddpmpp-cond", 3), ("ncsnpp-cond", 4), ("baseline-adm-cond", 4)]
)
def test_pickles_of_the_released_format(name: str, protocol: int, tmp_path: Path) -> None:
    config = SMALL[name]
    path = write_pickle(tmp_path / "network.pkl", config, protocol=protocol)
    held = edm_file.read(path, trust_pickle=True)
    assert held.config == config
    x, sigma, labels = inputs(config)
    expected = seeded_network(config)(x, sigma, labels)
    assert torch.equal(held.network()(x, sigma, labels), expected)
    converted = edm_file.convert(path, tmp_path / "network.safetensors", trust_pickle=True)
    assert torch.equal(edm_file.read(converted).network()(x, sigma, labels), expected)


def test_a_pickle_needs_trust(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "network.pkl", PLAIN)
    for read in (lambda: edm_file.read(path), lambda: models.load(f"edm:{path}")):
        with pytest.raises(ArgumentError, match=r"can carry code .* trust_pickle=True .*--trust-pickle"):
            read()


class Call:
    """Pickled as a call of any function."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.told = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.told


def storage_bytes(content: Any) -> bytes:
    """What torch puts into a pickle for a storage, around any content."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def test_nothing_of_a_pickle_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    evil = Call(os.system, f"touch {mark}")
    load = torch.storage._load_from_bytes
    for k, (more, words) in enumerate(
        [
            ({"ema": evil}, r"the name (posix|nt)\.system"),
            ({"augment_pipe": [evil]}, r"the name (posix|nt)\.system"),
            ({"x": Call(eval, "1")}, "the name builtins.eval"),
            ({"x": Call(getattr, "", "join")}, "the name builtins.getattr"),
            ({"x": Call(torch.load, "x")}, "the name torch.serialization.load"),
            ({"x": Call(load, storage_bytes(evil))}, "no plain tensor data"),
            ({"x": Call(load, storage_bytes([1, 2]))}, "a storage that is a list"),
            ({"x": Call(load, b"")}, "no plain tensor data"),
        ]
    ):
        path = write_pickle(tmp_path / f"{k}.pkl", PLAIN, **more)
        with pytest.raises(FileFormatError, match=words):
            edm_file.read(path, trust_pickle=True)
    assert not mark.exists()


def test_tensors_stay_inside_their_data(tmp_path: Path) -> None:
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.zeros(6).untyped_storage(), dtype=torch.float32, _internal=True
    )
    data = torch.storage._load_from_bytes, storage_bytes(storage)
    rebuild = torch._utils._rebuild_tensor_v2
    for k, (offset, size, stride) in enumerate(
        [(0, (7,), (1,)), (4, (2, 2), (2, 1)), (5, (2,), (-1,)), (0, (9,), (0,))]
    ):
        call = Call(rebuild, Call(*data), offset, size, stride, False, None)
        with pytest.raises(FileFormatError, match=r"larger than its data|out of bounds"):
            edm_file.read(write_pickle(tmp_path / f"{k}.pkl", PLAIN, x=call), trust_pickle=True)


def test_a_pickle_cannot_change_this_program(tmp_path: Path) -> None:
    """The opcode that sets attributes, aimed at the functions and classes that stand for names."""
    for name in ("torch._utils\n_rebuild_tensor_v2", "dnnlib.util\nEasyDict", "numpy\ndtype"):
        path = tmp_path / "network.pkl"
        path.write_bytes(f"c{name}\n".encode() + b"(N}Vmark\nI1\nstb.")
        with pytest.raises(FileFormatError):
            edm_file.read(path, trust_pickle=True)
    for known in edm_pickle.KNOWN.values():
        assert not hasattr(known, "mark")


def test_damaged_files(tmp_path: Path) -> None:
    whole = write_pickle(tmp_path / "network.pkl", PLAIN).read_bytes()
    cycle: dict[str, Any] = {"_parameters": {}, "_buffers": {}, "_modules": {}, "_init_kwargs": {}}
    cases: list[tuple[bytes, str]] = [
        (b"", "cannot be read as a pickle"),
        (whole[: len(whole) // 2], "cannot be read as a pickle"),
        (pickle.dumps({"G_ema": 1}), "no network under 'ema'"),
        (pickle.dumps([1]), "no network under 'ema'"),
    ]
    for content, words in cases:
        (tmp_path / "damaged.pkl").write_bytes(content)
        with pytest.raises(FileFormatError, match=words):
            edm_file.read(tmp_path / "damaged.pkl", trust_pickle=True)
    from .edm_networks import Persistent

    looped = Persistent("EDMPrecond", cycle)
    cycle["_modules"]["again"] = looped
    for k, state in enumerate([cycle, {"_init_kwargs": {"x": EasyDict()}}, cycle | {"_modules": 3}]):
        path = tmp_path / f"{k}.pkl"
        with their_modules(), path.open("wb") as file:
            pickle.dump({"ema": Persistent("EDMPrecond", state)}, file)
        with pytest.raises(FileFormatError, match="of an unknown form"):
            edm_file.read(path, trust_pickle=True)


def test_safetensors_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="cannot be read as safetensors"):
        edm_file.read(path)
    with pytest.raises(FileFormatError, match="no EDM network of this version"):
        edm_file.read(str(networks.mnist.shipped("mnist.safetensors")))
    with pytest.raises(ArgumentError, match=r"ends in \.safetensors"):
        EdmFile(PLAIN, build(PLAIN).state_dict()).save(tmp_path / "network.pkl")
    with pytest.raises(ArgumentError, match="no file"):
        edm_file.read(tmp_path / "absent.safetensors")


# -------------------------------------------------------------------------------------------------- the denoisers
@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("edm")
    chosen = ("ddpmpp", "ddpmpp-cond", "baseline-ve")
    return {
        n: EdmFile(SMALL[n], seeded_network(SMALL[n]).state_dict()).save(folder / f"{n}.safetensors") for n in chosen
    }


def test_loading_by_name(files: dict[str, Path], tmp_path: Path) -> None:
    model = models.load(f"edm:{files['ddpmpp']}")
    assert (model.shape, model.noise, model.dtype) == ((3, 16, 16), EDM(0.002, 80.0), torch.float32)
    assert models.load(f"edm:{files['baseline-ve']}").noise == EDM(0.02, 80.0)  # narrowed by the network
    x = 3 * randn(4, 3, 16, 16, seed=0)
    assert torch.equal(model(x, 3.0), seeded_network(PLAIN)(x, torch.full((4,), 3.0)))
    pickled = models.load(f"edm:{write_pickle(tmp_path / 'n.pkl', PLAIN)}?trust-pickle")
    assert pickled.fingerprint == model.fingerprint
    others = [models.load(f"edm:{files['ddpmpp']}?{o}").fingerprint for o in ("fp16", "noise=vp")]
    others.append(networks.edm_denoiser(EdmFile(PLAIN | {"sigma_data": 0.6}, build(PLAIN).state_dict())).fingerprint)
    assert len({model.fingerprint, *others}) == 4
    flat = models.load(f"edm:{files['ddpmpp']}?noise=vp")
    t = flat.noise.time_of_ratio(3.0)
    assert (flat(float(flat.noise.alpha(t)) * x, t) - model(x, 3.0)).abs().max() < 1e-4


def test_labels(files: dict[str, Path]) -> None:
    model, network = models.load(f"edm:{files['ddpmpp-cond']}"), seeded_network(SMALL["ddpmpp-cond"])
    assert networks.classes_of(model) == 10
    labels = models.default_condition(model, range(12))
    assert labels is not None
    assert labels.tolist() == [*range(10), 0, 1]
    x, sigma = 2 * randn(12, 3, 16, 16, seed=0), torch.full((12,), 2.0)
    assert torch.equal(model(x, 2.0, labels), network(x, sigma, torch.eye(10)[labels]))
    unlabelled = model(x, 2.0)
    assert torch.equal(unlabelled, network(x, sigma, torch.zeros(12, 10)))
    assert (model(x, 2.0, torch.full((12,), 10)) - unlabelled).abs().max() < 1e-6
    for wrong in (torch.full((12,), 11), torch.zeros(12), torch.zeros(3, dtype=torch.long)):
        with pytest.raises(ArgumentError, match="condition has"):
            model(x, 2.0, wrong)
    plain = models.load(f"edm:{files['ddpmpp']}")
    assert models.default_condition(plain, range(3)) is None
    with pytest.raises(ArgumentError, match="unconditional network"):
        plain(x, 2.0, labels)


def test_float16(files: dict[str, Path]) -> None:
    model, half = (models.load(f"edm:{files['ddpmpp']}", fp16=fp16) for fp16 in (False, True))
    x = randn(3, 3, 16, 16, seed=0)
    out = half(x, 1.0)
    assert out.dtype == torch.float32
    assert 0 < (out - model(x, 1.0)).abs().max() < 0.01


def test_sampling_depends_on_the_seed_alone(files: dict[str, Path]) -> None:
    model = models.load(f"edm:{files['ddpmpp-cond']}")
    table = dpmpp_2m(karras(model.noise, 3)).tabulate(model.noise)
    images = sample(model, table, seeds=range(4), condition=models.default_condition(model, range(4)))
    assert images.shape == (4, 3, 16, 16)
    alone = sample(model, table, seeds=[2], condition=torch.tensor([2]))
    assert (images[2:3] - alone).abs().max() < 1e-4
