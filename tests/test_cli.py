"""The command line: help that teaches and costs nothing, JSON everywhere, one clear message for every mistake."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fewstep import models, solvers, times
from fewstep.cli import app, common
from fewstep.errors import ArgumentError
from fewstep.noise import EDM
from fewstep.tableau import Tableau

COMMANDS = ("optimize", "sample", "compare", "show", "export", "models", "solvers", "times")
PROBLEM = "problem:gaussian"
TINY = ["--max-calls", "40000", "--no-around", "-q"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")


def run(*args, code=0):
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def schedule(tmp_path) -> Path:
    path = tmp_path / "schedule.json"
    solvers.dpmpp_2m(times.karras(EDM(), 5)).tabulate(EDM()).save(path)
    return path


# ----------------------------------------------------------------------------------------------------------- help
def test_help_names_every_command_and_gives_examples():
    text = run("--help").stdout
    assert all(command in text for command in COMMANDS)
    assert "fewstep optimize mnist --nfe 6 --out runs/mnist-6" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command):
    text = run(command, "--help").stdout
    assert "Examples:" in text
    assert f"fewstep {command}" in text
    assert "--json" in text


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['fewstep', 'compare', '--help']\nfrom fewstep.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', sorted({'torch', 'numpy', 'matplotlib', 'scipy', 'safetensors'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "HEAVY []"


def test_version_and_module():
    import fewstep

    assert run("--version").stdout.strip() == f"fewstep {fewstep.__version__}"
    assert CliRunner().invoke(app, []).exit_code in (0, 2)  # no arguments: the help page


# ---------------------------------------------------------------------------------------------------------- lists
def test_lists_are_complete():
    assert {r["name"] for r in json.loads(run("solvers", "--json").stdout)} == set(solvers.NAMES)
    assert all(r["description"] for r in json.loads(run("solvers", "--json").stdout))
    assert set(json.loads(run("times", "--json").stdout)["grids"]) == set(times.NAMES)
    names = {r["name"] for r in json.loads(run("models", "--json").stdout)}
    assert {"mnist", PROBLEM} <= names
    for command in ("models", "solvers", "times"):
        text = run(command).stdout
        assert max(map(len, text.splitlines())) <= 130 or command == "solvers"
    assert "dpmpp_2m" in run("solvers").stdout


# --------------------------------------------------------------------------------------------------- show, export
def test_show_prints_the_table_and_draws_it(schedule, tmp_path):
    table = Tableau.load(schedule)
    assert run("show", schedule).stdout.strip() == str(table).strip()
    assert run("show", tmp_path).stdout.strip() == str(table).strip()  # the folder that holds it
    record = json.loads(run("show", schedule, "--json").stdout)
    assert record["digest"] == table.digest
    assert Tableau.from_dict(record) == table
    run("show", schedule, "--plot", tmp_path / "t.png")
    run("show", schedule, "--plot", tmp_path / "t.svg")
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "t.svg").read_text().startswith("<svg")
    assert "end it in .png or .svg" in run("show", schedule, "--plot", "t.pdf", code=2).stderr


def test_export_puts_the_text_alone_on_standard_output(schedule, tmp_path):
    done = run("export", schedule, "--to", "comfyui", "--out", tmp_path / "s.txt")
    numbers = [float(v) for v in done.stdout.split(",")]
    assert numbers == pytest.approx(times.karras(EDM(), 5).tolist(), rel=1e-9)
    assert "KSamplerSelect" in done.stderr
    assert (tmp_path / "s.txt").read_text() == done.stdout
    record = json.loads(run("export", schedule, "--to", "k-diffusion", "--json").stdout)
    assert record["sampler"] == "dpmpp_2m"
    assert record["losses"] == []


def test_a_lossy_export_is_refused_and_given_with_consent(tmp_path):
    solvers.unipc(times.karras(EDM(), 5)).tabulate(EDM()).save(tmp_path / "u.json")
    refused = run("export", tmp_path / "u.json", "--to", "comfyui", code=2)
    assert refused.stdout == ""
    assert "weights of unipc" in refused.stderr and "--accept-loss" in refused.stderr
    given = run("export", tmp_path / "u.json", "--to", "comfyui", "--accept-loss")
    assert "lost: the weights of unipc" in given.stderr
    assert len(given.stdout.split(",")) == 6


# --------------------------------------------------------------------------------------------------------- sample
def test_sample_is_the_library_call(schedule, tmp_path):
    out = tmp_path / "x.npy"
    told = json.loads(run("sample", PROBLEM, "--schedule", schedule, "--seeds", "0-5,9", "--out", out, "--json").stdout)
    from fewstep.sampling import sample

    expected = sample(models.load(PROBLEM), Tableau.load(schedule), seeds=[0, 1, 2, 3, 4, 5, 9])
    assert torch.equal(torch.from_numpy(np.load(out)), expected)
    assert (told["samples"], told["nfe"], told["calls"]) == (7, 5, 35)


def test_sample_with_a_named_solver_and_one_label(tmp_path):
    run(
        "sample",
        "problem:images_8x8",
        "--solver",
        "heun",
        "--nfe",
        5,
        "--seeds",
        "0-8",
        "--columns",
        3,
        "--out",
        tmp_path / "a.png",
    )
    run("sample", "mnist", "--solver", "ddim", "--nfe", 1, "--seeds", "3", "--label", 7, "--out", tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_one_brownian_motion_for_every_number_of_calls(tmp_path):
    asked = ("sample", "problem:grid_6x6", "--solver", "ddpm", "--times", "logsnr", "--seeds", "0-99")
    made = {}
    for nfe, motion in ((10, True), (40, True), (10, False), (40, False)):
        out = tmp_path / f"{nfe}-{motion}.npy"
        run(*asked, "--nfe", nfe, "--out", out, *(["--brownian"] if motion else []))
        made[nfe, motion] = np.load(out)
    together, apart = (np.square(made[10, motion] - made[40, motion]).mean() for motion in (True, False))
    assert together < apart / 2


def test_a_schedule_for_another_network_is_remarked(schedule, tmp_path):
    table = Tableau.load(schedule)
    table.meta["fingerprint"], table.meta["model"] = "something-else", "my network"
    table.save(schedule)
    done = run("sample", PROBLEM, "--schedule", schedule, "--seeds", "0", "--out", tmp_path / "x.npy")
    assert "found for another network (my network)" in done.stderr


# -------------------------------------------------------------------------------------------------------- compare
def test_compare_prints_a_table_and_writes_its_files(schedule, tmp_path):
    out = tmp_path / "cmp"
    args = [
        "compare",
        PROBLEM,
        "--nfe",
        4,
        5,
        "--schedule",
        schedule,
        "--solver",
        "ddim",
        "heun",
        "--times",
        "karras",
        "-n",
        60,
    ]
    done = run(*args, "--out", out)
    for part in (
        "4 calls",
        "5 calls",
        "ddim",
        "n/a: heun cannot make 4 calls",
        f"{tmp_path.name}/schedule.json",
        "±",
        "*",
    ):
        assert part in done.stdout, part
    record = json.loads((out / "compare.json").read_text())
    assert len(record["rows"]) == 5
    assert record["by"] == "rms"
    assert (out / "compare.png").read_bytes()[:4] == b"\x89PNG"
    again = json.loads(run(*args, "--out", out, "--json").stdout)
    assert again["rows"] == record["rows"]  # from the kept scores: even the seconds are equal


def test_compare_takes_its_calls_from_the_files(schedule):
    rows = json.loads(run("compare", PROBLEM, "--schedule", schedule, "-n", 50, "--by", "nll", "--json").stdout)["rows"]
    assert {r["nfe"] for r in rows} == {5}
    assert all("nll" in r["scores"] for r in rows)


def test_compare_goes_on_after_ctrl_c(tmp_path, monkeypatch):
    (tmp_path / "stoppable.py").write_text(
        "from fewstep import problems\nfrom fewstep.denoiser import Denoiser\nleft = [0]\n"
        "def make():\n"
        "    inner = problems.get('gaussian').denoiser()\n"
        "    def fn(x, t, c):\n"
        "        left[0] -= 1\n"
        "        if left[0] == 0: raise KeyboardInterrupt\n"
        "        return inner(x, t, c)\n"
        "    return Denoiser(fn, noise=inner.noise, shape=(2,), fingerprint='stoppable')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "stoppable", raising=False)
    import importlib

    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("stoppable")
    args = [
        "compare",
        "python:stoppable:make",
        "--nfe",
        "3,4",
        "--solver",
        "ddim",
        "--times",
        "karras,logsnr",
        "-n",
        20,
        "--out",
        tmp_path / "o",
    ]
    module.left[0] = 60 + 1 + 3 + 2  # the teacher, the probe of its cache, one cell, and a bit
    stopped = run(*args, code=130)
    assert "1 of 4 scores are done and kept in" in stopped.stderr
    assert "same command again" in stopped.stderr
    module.left[0] = 0
    rows = json.loads(run(*args, "--json").stdout)["rows"]
    assert len(rows) == 4
    assert all(r["scores"] for r in rows)
    assert len((tmp_path / "o/.cache/compare.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_real_interrupt_leaves_whole_files(tmp_path):
    out = tmp_path / "o"
    command = [
        sys.executable,
        "-m",
        "fewstep",
        "compare",
        "problem:grid_8x8",
        "--nfe",
        *map(str, range(3, 60)),
        "-n",
        "4000",
        "--out",
        str(out),
    ]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    kept = out / ".cache" / "compare.jsonl"
    for _ in range(1200):
        if kept.exists() and kept.read_bytes().count(b"\n") >= 2:
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    stderr = child.communicate(timeout=60)[1]
    assert child.returncode == 130
    assert "start the same command again to go on" in stderr
    assert "Traceback" not in stderr
    assert all(json.loads(line) for line in kept.read_text().splitlines())


# ------------------------------------------------------------------------------------------------------- optimize
def test_optimize_writes_a_schedule_a_picture_and_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs" / "problem-gaussian-4"
    told = json.loads(
        run("optimize", PROBLEM, "--nfe", 4, "--method", "dmn", *TINY[2:], "--max-calls", 20000, "--json").stdout
    )
    assert {Path(f).name for f in told["files"]} == {"schedule.json", "samples.png", "report.html", "search.json"}
    assert all(Path(f).stat().st_size > 500 for f in told["files"])
    table = Tableau.load(out / "schedule.json")
    assert (table.nfe, told["digest"]) == (4, table.digest)
    page = (out / "report.html").read_text()
    for title in ("Samples", "Times", "The table", "Candidates", "Cost", "Use it"):
        assert f"<h2>{title}</h2>" in page
    assert f"{PROBLEM} in 4 network calls" in page


@pytest.mark.slow
def test_optimize_for_each_solver_and_number_of_calls(tmp_path):
    out = tmp_path / "many"
    told = json.loads(
        run(
            "optimize", PROBLEM, "--nfe", "2,3", "--solver", "ddim,heun", "--each", "--method", "dmn", *TINY[2:],
            "--max-calls", 64000, "--out", out, "--json",
        ).stdout
    )  # fmt: skip
    folders = ["ddim-2", "ddim-3", "heun-3"]  # heun makes no two calls
    assert sorted(row["folder"] for row in told["results"]) == sorted(folders)
    for folder in folders:
        assert Tableau.load(out / folder / "schedule.json").nfe == int(folder[-1])
        assert (out / folder / "report.html").exists()


@pytest.mark.slow
def test_optimize_for_image_to_image(tmp_path):
    told = json.loads(
        run(
            "optimize", PROBLEM, "--nfe", 3, "--start", 2.0, "--method", "dmn", *TINY, "--out", tmp_path, "--json"
        ).stdout
    )
    assert told["window"]["image_to_image"]
    assert Tableau.load(tmp_path / "schedule.json").times[0].item() == 2.0
    assert "image-to-image" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_searches_beside_each_other_share_a_chart_and_the_commands_take_them(tmp_path):
    for nfe in (4, 5):
        done = run("optimize", PROBLEM, "--nfe", nfe, "--method", "dmn", "--out", tmp_path / f"run-{nfe}", *TINY)
    assert "best hand-crafted" in done.stdout
    assert "report.html" in done.stdout
    page = (tmp_path / "run-5/report.html").read_text()
    assert "Each point is a search of its own" in page
    assert page.count("<svg") == 5
    files = tmp_path / "run-4/schedule.json", tmp_path / "run-5/schedule.json"
    run("sample", PROBLEM, "--schedule", tmp_path / "run-4", "--seeds", "0-3", "--out", tmp_path / "s.png")
    run("compare", PROBLEM, "--schedule", *files, "-n", 50, "-q", "--out", tmp_path)


def test_optimize_stopped_says_what_was_saved(tmp_path, monkeypatch):
    import fewstep.optimizing

    def stopped(*_args, **_options):
        raise KeyboardInterrupt("the best so far (karras) is in runs/x; run the same again to go on")

    monkeypatch.setattr(fewstep.optimizing, "optimize", stopped)
    done = run("optimize", PROBLEM, "--nfe", 3, "--out", tmp_path / "o", code=130)
    assert "best so far (karras) is in runs/x" in done.stderr
    record = json.loads(run("optimize", PROBLEM, "--nfe", 3, "--out", tmp_path / "o", "--json", code=130).stdout)
    assert record["error"]["kind"] == "Interrupted"


# --------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["show", "missing.json"], "missing.json does not exist: give a file"),
        (["sample", "nope", "--solver", "ddim"], "'nope' is no model; give mnist"),
        (["sample", PROBLEM], "give either --schedule FILE, or --solver NAME"),
        (["sample", PROBLEM, "--solver", "dmi", "--out", "x.png"], "did you mean"),
        (["sample", PROBLEM, "--solver", "heun", "--nfe", "6"], "choose another number of calls"),
        (["sample", PROBLEM, "--solver", "ddim", "--nfe", "0"], "choose another number of calls"),
        (["sample", PROBLEM, "--solver", "ddim", "--seeds", "5-1"], "write 0-63 for a range"),
        (["sample", PROBLEM, "--solver", "ddim", "--out", "x.gif"], "end it in .png"),
        (
            ["sample", PROBLEM, "--solver", "ddim", "--label", "3", "--out", "x.png"],
            "has no labels; leave --label out",
        ),
        (["compare", PROBLEM, "--nfe", "4", "0"], "give whole numbers from 1"),
        (["compare", PROBLEM, "--by", "beauty"], "choose one of fd, rms, nll"),
        (["compare", "mnist", "--by", "nll"], "use --by rms"),
        (["compare", PROBLEM, "--by", "fd", "-n", "10"], "give at least 48"),
        (["optimize", PROBLEM, "--nfe", "0"], "give the number of network calls"),
        (["optimize", PROBLEM, "--nfe", "4", "--method", "magic"], "choose one of auto"),
        (["optimize", PROBLEM, "--nfe", "4", "--solver", "magic"], "did you mean"),
        (["optimize", PROBLEM, "--nfe", "4", "--max-calls", "300"], "give more calls"),
        (["optimize", "python:no_such_module:make", "--nfe", "4"], "run from its folder, or install it"),
    ],
)
def test_mistakes_end_in_one_message_that_names_the_cure(args, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = run(*args, code=2)
    assert says in " ".join(plain.stderr.split())
    assert plain.stdout == ""
    assert "Traceback" not in plain.stderr
    error = json.loads(run(*args, "--json", code=2).stdout)["error"]
    assert error["kind"].endswith("Error")
    assert says in error["message"]
    assert not list(tmp_path.glob("*.png"))


def test_a_damaged_schedule_is_named(schedule):
    schedule.write_text(schedule.read_text()[:200])
    assert "is not JSON" in run("show", schedule, code=2).stderr
    assert (
        json.loads(run("export", schedule, "--to", "sigmas", "--json", code=2).stdout)["error"]["kind"]
        == "FileFormatError"
    )


def test_a_network_that_fails_exits_with_1(tmp_path, monkeypatch):
    (tmp_path / "broken_net.py").write_text(
        "from fewstep.denoiser import Denoiser\nfrom fewstep.noise import EDM\n"
        "def make(): return Denoiser(lambda x, t, c: x / 0, noise=EDM(), shape=(2,))\n"
    )
    monkeypatch.chdir(tmp_path)
    done = run("sample", "python:broken_net:make", "--solver", "ddim", "--nfe", 2, code=1)
    assert "not finite" in done.stderr


def test_errors_of_the_program_itself_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(common, "load_table", lambda *_: 1 / 0)
    from fewstep.cli import tables

    monkeypatch.setattr(tables, "load_table", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("show", "x")


# ------------------------------------------------------------------------------------------------------ arguments
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("mnist --nfe 4 6 8", "mnist --nfe 4,6,8"),
        ("mnist --nfe 4,6 8 --out x", "mnist --nfe 4,6,8 --out x"),
        ("--nfe 4 6 mnist", "--nfe 4,6 mnist"),
        ("mnist --solver heun ddim --times karras beta -n 5", "mnist --solver heun,ddim --times karras,beta -n 5"),
        ("--schedule a.json b.json mnist", "--schedule a.json,b.json mnist"),
        ("mnist --out x --nfe 4 --nfe 6", "mnist --out x --nfe 4 --nfe 6"),
        ("--solver heun mnist", "--solver heun mnist"),
    ],
)
def test_lists_are_joined(given, meant):
    assert common.joined(given.split()) == meant.split()


def test_seeds_and_numbers():
    assert common.seeds_of("0-3, 9,5-5") == [0, 1, 2, 3, 9, 5]
    assert common.whole_numbers(["4,6", "8", "6"], "--nfe") == [4, 6, 8]
    for bad in ("", "a", "3-", "-3", "4-2", "1,,2"):
        with pytest.raises(ArgumentError, match="write 0-63"):
            common.seeds_of(bad)
