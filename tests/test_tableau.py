"""The table as a value: validation, identities, canonical form, digest, files, printing."""

import json
import math

import pytest
import torch

import fewstep as fs
from fewstep import noise as ns
from fewstep import solvers
from fewstep.errors import FileFormatError, TableauError
from fewstep.sampling import sample
from fewstep.tableau import Tableau

EDM = ns.EDM()
TIMES = torch.tensor([80.0, 12.0, 3.0, 0.7, 0.1, 0.0], dtype=torch.float64)


def small(**changes):
    """A legal two-step table of DDIM."""
    args = {
        "A": [[0, 0, 0], [0.5, 0, 0], [0, 0, 0]],
        "B": [[0, 0, 0], [0.5, 0, 0], [0, 1.0, 0]],
        "times": [2.0, 1.0, 0.0], "alpha": [1.0, 1, 1], "sigma": [2.0, 1, 0],
    } | changes  # fmt: skip
    return Tableau(**args)


def net(x, t, condition=None):
    return torch.tanh(x) / (1 + t) + 0.1 * x + 0.01 * t


def test_small_table_is_ddim():
    assert small().verify() == fs.SolverSchedule(torch.tensor([2.0, 1.0, 0.0]), (fs.Step(),) * 2).tabulate(
        ns.EDM(0.002, 80.0)
    )
    assert small().evaluated == (True, True, False) and small().nfe == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"A": [[0, 0, 0], [0.5, 0, 0], [0, 0, 0.1]]}, r"row 2 reads state 2, which does not exist yet \(A\[2,2\]\)"),
        ({"B": [[0, 0, 0], [0.5, 0, 0.2], [0, 1, 0]]}, "row 1 reads output 2"),
        ({"A": [[0, 0, 0], [math.nan, 0, 0], [0, 0, 0]]}, "A is not finite in row 1, column 0"),
        ({"times": [2.0, math.inf, 0.0]}, "times is not finite in row 1"),
        ({"B": [[0.0, 0], [0.5, 0], [0, 1]]}, r"B has shape \(3, 2\)"),
        ({"alpha": [1.0, 1]}, "alpha has shape"),
        ({"evaluated": (True, False, False)}, "row 2 reads output 1, but state 1 is not evaluated"),
        ({"evaluated": (True, True, True)}, "the last row is the sample"),
        ({"notes": ("a",)}, "notes has 1 entries"),
        ({"A": [[0.0]], "B": [[0.0]], "times": [1.0], "alpha": [1.0], "sigma": [1.0]}, "at least two states"),
    ],
)
def test_bad_tables_name_the_place(changes, message):
    with pytest.raises(TableauError, match=message):
        small(**changes)


def test_identities_and_expected_defects():
    broken = small(B=[[0, 0, 0], [0.6, 0, 0], [0, 1.0, 0]])
    mean, variance = broken.defects()
    assert abs(mean[1].item() - 0.1) < 1e-12 and mean[2] == 0 and variance.abs().max() == 0
    with pytest.raises(TableauError, match="row 1 breaks the mean identity by 0.1"):
        broken.verify()
    assert small(B=[[0, 0, 0], [0.6, 0, 0], [0, 1.0, 0]], expected=("learned weights",)).verify().expected


@pytest.mark.parametrize("name", sorted(set(solvers.NAMES) - {"restart"}))
def test_unrolled_gives_the_same_sample(name):
    table = solvers.NAMES[name](TIMES).tabulate(EDM)
    flat = table.unrolled()
    assert (flat.A[:, 1:] == 0).all() and flat == table and flat.nfe == table.nfe
    assert all(flat.evaluated[1:-1]) and flat.rows <= table.nfe + 2
    start = 80 * torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = [
        torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(m + 1))
        for m in range(table.C.shape[1])
    ]
    used = [
        m
        for m in range(table.C.shape[1])
        if table.expanded[2][[i for i in range(table.rows) if table.evaluated[i] or i == table.rows - 1]][:, m]
        .abs()
        .max()
        > 0
    ]
    one = sample(net, table, start=start, noise=noise.__getitem__)
    two = sample(net, flat, start=start, noise=lambda m: noise[used[m]])
    assert (one - two).abs().max() < 1e-10


def test_loop_is_a_dense_matrix_product():
    """The loop against the definition, with dense matrices and numpy-like indexing."""
    table = solvers.unipc(TIMES, order=3, basis="noise").tabulate(EDM)
    x = [80 * torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))]
    d = []
    for i in range(table.rows):
        if i:
            x.append(sum(table.A[i, k] * x[k] for k in range(i)) + sum(table.B[i, j] * d[j] for j in range(i)))
        d.append(net(x[i], table.model_times[i].item()))
    assert (sample(net, table, start=x[0]) - x[-1]).abs().max() < 1e-12


def test_equality_is_by_tolerance_and_digest_is_coarse():
    one = solvers.dpmpp_2m(TIMES).tabulate(EDM)
    two = solvers.dpmpp_2m(TIMES * (1 + 1e-13)).tabulate(ns.EDM(0.002, 80.0 * (1 + 1e-13)))
    three = solvers.dpmpp_2m(TIMES * torch.tensor([1, 1 + 1e-5, 1, 1, 1, 1])).tabulate(EDM)
    assert one == two and hash(one) == hash(two) and one != three
    numbers = [Tableau(t.A, t.B, t.times, t.alpha, t.sigma) for t in (one, two, three)]
    assert numbers[0].digest == numbers[1].digest != numbers[2].digest
    assert one != solvers.heun(TIMES).tabulate(EDM) and one.difference(solvers.heun(TIMES).tabulate(EDM)) == math.inf


@pytest.mark.parametrize("name", ["unipc", "sde_dpmpp_2m", "heun_churn", "er_sde"])
def test_file_round_trip_is_exact(name, tmp_path):
    table = solvers.NAMES[name](TIMES).tabulate(EDM)
    table.meta["guidance"] = 2.5
    table.save(tmp_path / "t.json")
    again = Tableau.load(tmp_path / "t.json")
    for part in ("A", "B", "C", "K", "times", "model_times", "alpha", "sigma"):
        assert torch.equal(getattr(again, part), getattr(table, part))
    assert again.digest == table.digest and again.meta == table.meta and again.notes == table.notes
    assert again.schedule == table.schedule and again.noise == table.noise and again.evaluated == table.evaluated
    assert len((tmp_path / "t.json").read_bytes()) < 12_000


def test_constants_and_per_element_weights_round_trip(tmp_path):
    gain = torch.rand(3, 3, 4, dtype=torch.float64).tril(-1) if False else torch.zeros(3, 3, 4, dtype=torch.float64)
    gain[1, 0], gain[2, 1] = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1.0, 0.9, 0.8, 0.7])
    table = small(B=gain, K=[[0.0], [0.25], [0.0]], constants=(torch.arange(4.0),), expected=("per element",))
    table.save(tmp_path / "t.json")
    again = Tableau.load(tmp_path / "t.json")
    assert torch.equal(again.B, gain) and torch.equal(again.constants[0], torch.arange(4.0)) and again == table
    (tmp_path / "t.safetensors").unlink()
    with pytest.raises(FileFormatError, match="copy both files"):
        Tableau.load(tmp_path / "t.json")


def corrupt(tmp_path, change):
    path = tmp_path / "t.json"
    solvers.dpmpp_2m(TIMES).tabulate(EDM).save(path)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda r: r["rows"][2]["outputs"].update({"1": math.nan}),
            TableauError,
            "row 2, column 1 of 'outputs' is nan",
        ),
        (lambda r: r["rows"][2]["outputs"].update({"5": 1.0}), TableauError, "row 2 reads output 5"),
        (
            lambda r: r["rows"][2]["states"].update({"17": 1.0}),
            TableauError,
            "row 2, column 17 of 'states' lies outside",
        ),
        (lambda r: r["rows"][1].update(time="soon"), TableauError, "row 1 has no finite number 'time'"),
        (lambda r: r["rows"][3].pop("sigma"), TableauError, "row 3 has no finite number 'sigma'"),
        (lambda r: r.update(version=99), FileFormatError, "update fewstep"),
        (lambda r: r.update(version="one"), FileFormatError, "version 'one'"),
        (lambda r: r.update(format="other"), FileFormatError, "not a table"),
        (lambda r: r.pop("rows"), FileFormatError, "damaged table"),
        (lambda r: r["noise"].update(family="strange"), FileFormatError, "unknown noise family"),
        (lambda r: r["schedule"]["steps"][0].update(colour="red"), FileFormatError, "damaged solver schedule"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        Tableau.load(corrupt(tmp_path, change))


def test_file_cut_at_any_byte_is_refused(tmp_path):
    path = tmp_path / "t.json"
    solvers.ddim(TIMES).tabulate(EDM).save(path)
    whole = path.read_text()
    for cut in range(0, len(whole) - 2, 37):
        path.write_text(whole[:cut])
        with pytest.raises(FileFormatError):
            Tableau.load(path)


def test_meta_that_is_not_json_leaves_the_old_file(tmp_path):
    table = solvers.ddim(TIMES).tabulate(EDM)
    table.save(tmp_path / "t.json")
    before = (tmp_path / "t.json").read_bytes()
    table.meta["bad"] = object()
    with pytest.raises(TableauError, match="plain JSON"):
        table.save(tmp_path / "t.json")
    assert (tmp_path / "t.json").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_print_fits_one_screen():
    text = str(solvers.unipc(TIMES).tabulate(EDM))
    assert text.count("*") >= 5 and "corrected" in text and "5 network calls" in text and len(text.splitlines()) < 30
    teacher = str(solvers.dpmpp_2m(torch.linspace(80, 0.002, 201, dtype=torch.float64)).tabulate(EDM))
    assert len(teacher.splitlines()) < 40 and "rows more" in teacher
    assert "infinite" in str(solvers.ddim(torch.tensor([1.0, 0.5, 0.0])).tabulate(ns.Flow()))


def test_tables_do_not_follow_torch_defaults():
    want = solvers.unipc(TIMES).tabulate(EDM)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            got = solvers.unipc(TIMES).tabulate(ns.EDM())
            digest = got.digest
    finally:
        torch.set_default_dtype(before)
    assert got.A.dtype == torch.float64 and got.A.device.type == "cpu" and digest == want.digest and got == want


def test_one_step_of_every_solver_is_finite():
    for noise in (ns.EDM(), ns.Flow(), ns.VPLinear(), ns.Discrete.scaled_linear()):
        for name, f in solvers.NAMES.items():
            if name in ("restart", "heun_churn"):
                continue
            table = f(torch.tensor([noise.t_max, noise.t_clean], dtype=torch.float64)).tabulate(noise)
            assert table.nfe == 1 and table.A.isfinite().all() and abs(table.B[-1].sum() - 1) < 1e-12, name
