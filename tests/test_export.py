"""Text for other programs reads back as the same numbers, by each host's own conventions, and says what it loses."""

import dataclasses
import itertools
import math
import re
import shlex

import pytest
import torch

import fewstep as fs
from fewstep import solvers, times
from fewstep.errors import ArgumentError, LossyExport
from fewstep.export import K_DIFFUSION, TARGETS, Export, export, fixed, snapped, solver_of
from fewstep.export_text import apart
from fewstep.noise import EDM, Discrete, Flow, VPLinear
from tests import golden

SD = Discrete.scaled_linear(0.00085, 0.012, 1000)
COMFY = re.compile(r"[-+]?(?:\d*\.*\d+)")  # the pattern by which ManualSigmas reads its text
GRIDS = ("irregular8", "karras6", "stops5")


def numbers(text: str) -> list[float]:
    return [float(v) for v in text.split(",")]


def in_brackets(text: str) -> list[float]:
    return numbers(re.search(r"\[([^\]]*)\]", text[text.rindex("=[") if "=[" in text else 0 :]).group(1))


def table(noise, name="dpmpp_2m", n=6, **options):
    return solvers.get(name)(times.karras(noise, n), **options).tabulate(noise)


@pytest.mark.parametrize("noise", [EDM(), VPLinear(), SD], ids=lambda n: n.family)
def test_noise_levels_read_back(noise):
    t = table(noise)
    text = export(t, "sigmas").text
    assert "e" not in text
    read = torch.tensor(numbers(text), dtype=torch.float64)
    want = noise.ratio(t.times)
    assert read[-1] == 0
    torch.testing.assert_close(read, want, rtol=1e-9, atol=0)


def test_no_number_is_written_with_an_exponent():
    tiny = [80.0, 3.25e-7, 1e-12, 0.0]
    text = fixed(tiny)
    assert "e" not in text
    assert numbers(text) == pytest.approx(tiny, rel=1e-9, abs=0)
    assert fixed([0.0]) == "0.0"


def test_comfyui_reads_the_numbers_that_were_meant():
    t = table(SD, n=8)
    done = export(t, "comfyui")
    read = [float(v) for v in COMFY.findall(done.text)]
    assert len(read) == 9
    assert read == sorted(read, reverse=True)
    assert read[-1] == 0
    torch.testing.assert_close(torch.tensor(read, dtype=torch.float64), SD.ratio(t.times), rtol=1e-9, atol=0)
    assert done.sampler == "dpmpp_2m"
    assert any("KSamplerSelect" in note for note in done.notes)
    assert any("integer times" in note and "%" in note for note in done.notes)


def test_integer_times_need_no_warning():
    grid = torch.tensor([999.0, 600, 300, 50, -1], dtype=torch.float64)
    done = export(solvers.euler(grid).tabulate(SD), "comfyui")
    assert not any("integer" in note for note in done.notes)


@pytest.mark.parametrize("sampler", sorted(K_DIFFUSION))
@pytest.mark.parametrize("grid", GRIDS)
def test_every_host_sampler_makes_the_table_that_we_say(sampler, grid):
    """The promise of an export: k-diffusion's own function, as traced, equals the table row by row."""
    host = golden.load(f"k_diffusion/{sampler} {grid}")
    name, options = K_DIFFUSION[sampler]
    ours = solvers.get(name)(host.steps, **options).tabulate(EDM())
    flat = ours.unrolled()
    assert flat.nfe == host.outputs.shape[1]
    scale = host.outputs.abs().amax(1).clamp_min(1)[1:]
    assert float(((flat.B[1:, :-1] - host.outputs[1:]).abs().amax(1) / scale).max()) < 1e-9
    assert float((flat.A[1:, 0] - host.start[1:]).abs().max()) < 1e-9
    assert solver_of(ours, K_DIFFUSION) in K_DIFFUSION


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "lms", "sde_dpmpp_2m"])
def test_k_diffusion_snippet_names_the_function(name):
    done = export(table(EDM(), name), "k-diffusion")
    called = re.search(r"sampling\.sample_(\w+)\(model, noise \* sigmas\[0\], sigmas\)", done.text).group(1)
    assert called == done.sampler
    assert K_DIFFUSION[called][0] == name
    assert ("draws its own noise" in " ".join(done.notes)) == name.startswith("sde")


def test_ddim_is_everybodys_euler():
    assert export(table(EDM(), "ddim"), "comfyui").sampler == "euler"


def test_flow_models_count_in_sigma_and_agree_on_euler_only():
    noise = Flow(shift=3.0)
    grid = times.uniform(noise, 4)
    done = export(solvers.euler(grid).tabulate(noise), "comfyui")
    torch.testing.assert_close(
        torch.tensor(numbers(done.text), dtype=torch.float64), noise.sigma(grid), rtol=1e-9, atol=0
    )
    assert done.text.startswith("1.0,")
    with pytest.raises(LossyExport, match="no sampler of comfyui"):
        export(solvers.dpmpp_2m(grid).tabulate(noise), "comfyui")


@pytest.mark.parametrize("shift", [None, 1.0, 3.0, 6.5])
def test_diffusers_flow_shift_is_taken_out(shift):
    """Re-applying the host's formula (specified in its set_timesteps) gives our levels back."""
    noise = Flow(shift=3.0)
    t = solvers.euler(torch.tensor([1.0, 0.7, 0.4, 0.1, 0.0], dtype=torch.float64)).tabulate(noise)
    done = export(t, "diffusers", shift=shift)
    u = torch.tensor(in_brackets(done.text), dtype=torch.float64)
    s = 3.0 if shift is None else shift
    assert len(u) == 4  # the host appends the 0
    torch.testing.assert_close(s * u / (1 + (s - 1) * u), noise.sigma(t.times[:4]), rtol=1e-8, atol=0)
    assert f"shift={s}" in done.text
    assert "FlowMatchEuler" in done.sampler


def test_diffusers_euler_keeps_the_final_zero():
    done = export(table(SD, "euler", 5), "diffusers")
    read = in_brackets(done.text)
    assert len(read) == 6
    assert read[-1] == 0
    assert done.sampler == "EulerDiscreteScheduler"


def test_diffusers_dpm_solver_takes_integers_and_says_how_far_they_are_off():
    done = export(table(SD, "dpmpp_2m", 6), "diffusers")
    steps = in_brackets(done.text)
    assert all(v == int(v) for v in steps)
    assert len(steps) == 6
    assert any("off by up to" in note for note in done.notes)
    crowded = torch.tensor([999.0, 20.3, 20.1, -1], dtype=torch.float64)
    with pytest.raises(LossyExport, match=r"repeat when rounded.*Export to"):
        export(solvers.dpmpp_2m(crowded).tabulate(SD), "diffusers")


def test_diffusers_has_nothing_for_edm():
    with pytest.raises(LossyExport, match="EDM networks: export to k-diffusion"):
        export(table(EDM()), "diffusers", accept_loss=True)


@pytest.mark.parametrize("to", ["sigmas", "timesteps", "comfyui", "k-diffusion"])
def test_learned_weights_are_refused_and_given_with_consent(to):
    t = table(EDM())
    learned = dataclasses.replace(t, B=t.B * 1.01, name="learned")
    with pytest.raises(LossyExport, match=r"the weights of learned: no .*accept_loss"):
        export(learned, to)
    done = export(learned, to, accept_loss=True)
    assert done.text.count(",") >= 5
    assert "weights of learned" in done.losses[0]
    if to in ("sigmas", "timesteps"):
        assert done.sampler == "" and done.runs is None
        return
    assert done.sampler == "dpmpp_2m"  # the nearest
    assert "dpmpp_2m, is off by up to 0.01" in done.losses[0]
    assert done.difference == pytest.approx(0.01 / 1.01, rel=0.2)


def test_without_decisions_the_falling_times_are_the_grid():
    t = dataclasses.replace(table(EDM(), "heun", 4), schedule=None)
    read = numbers(export(t, "sigmas", accept_loss=True).text)
    assert read == pytest.approx(times.karras(EDM(), 4).tolist(), rel=1e-9)


def test_a_free_first_step_and_decoupled_times_are_named_as_losses():
    grid = times.karras(EDM(), 4)
    free = dataclasses.replace(solvers.dpmpp_2m(grid), afs="unit").tabulate(EDM())
    with pytest.raises(LossyExport, match="free first step"):
        export(free, "comfyui")
    told = dataclasses.replace(solvers.dpmpp_2m(grid), model_times=grid * 1.01).tabulate(EDM())
    with pytest.raises(LossyExport, match="times told to the network"):
        export(told, "sigmas")


def test_a_list_that_keeps_noise_says_so():
    t = solvers.euler(times.karras(EDM(), 5, end="min")).tabulate(EDM())
    assert any("not 0" in note for note in export(t, "sigmas").notes)


def test_bad_requests_name_the_cure():
    t = table(EDM())
    with pytest.raises(ArgumentError, match=r"choose one of sigmas, timesteps, comfyui"):
        export(t, "paper")
    with pytest.raises(ArgumentError, match=r"set Tableau\.noise"):
        export(dataclasses.replace(t, noise=None), "sigmas")
    start = solvers.euler(times.uniform(Flow(), 3)).tabulate(Flow())
    with pytest.raises(ArgumentError, match="positive shift"):
        export(start, "diffusers", shift=0.0)
    flat = Discrete((0.9, 0.5, 0.1, 0.0))
    infinite = solvers.euler(torch.tensor([3.0, 2.0, 1.0, -1.0], dtype=torch.float64)).tabulate(flat)
    with pytest.raises(ArgumentError, match=r"alpha = 0.*export timesteps"):
        export(infinite, "sigmas")
    assert numbers(export(infinite, "timesteps").text) == [3, 2, 1]


def test_targets_name_themselves():
    t = table(SD, "euler")
    for to in TARGETS:
        done = export(t, to)
        assert isinstance(done, Export)
        assert done.target == to
        assert done.sampler
        assert not done.losses


# ---------------------------------------------------------------------------------- read back by the hosts themselves


class Pipe:
    """What a snippet for diffusers needs: a scheduler with a configuration, and a call whose arguments are kept."""

    def __init__(self, scheduler):
        self.scheduler = scheduler

    def __call__(self, prompt, **arguments):
        self.arguments = arguments
        return self

    images = None


def run_by_diffusers(text, name, **config):
    """Execute the snippet; returns the scheduler that it leaves and the argument it gives, and our reading of both."""
    diffusers = pytest.importorskip("diffusers")
    pipe = Pipe(getattr(diffusers, name)(**config))
    exec(text, {"pipe": pipe, "prompt": ""})
    ready = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return pipe.scheduler, pipe.arguments, ready


SD_CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW_GRID = torch.tensor([1.0, 0.86, 0.61, 0.3, 0.08, 0.0], dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_diffusers_runs_the_table_that_we_say_in_noise_levels(solver):
    t = table(SD, solver, 6)
    done = export(t, "diffusers")
    spoilt = SD_CONFIG | {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
    scheduler, given, ready = run_by_diffusers(done.text, "DPMSolverMultistepScheduler", **spoilt)
    assert type(scheduler).__name__ == done.sampler
    ready.set_timesteps(**given)
    want = done.runs.alpha * 0 + SD.ratio(done.runs.times)
    torch.testing.assert_close(ready.sigmas.double(), want, rtol=2e-5, atol=1e-7)
    traced = fs.from_sampler(scheduler, noise=SD, **given)
    assert apart(traced, done.runs) < 2e-4  # their float32 tables
    if solver == "euler":
        assert done.runs.isclose(t)
    else:
        assert 0 < done.difference < 0.1  # rounded times
        assert any(f"by up to {done.difference:.2g}" in note for note in done.notes)


@pytest.mark.parametrize("how", [{}, {"shift": 6.5}, {"mu": 1.15}])
@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_diffusers_runs_the_table_that_we_say_in_flows(solver, how):
    noise = Flow(shift=3.0)
    grid = FLOW_GRID if solver == "euler" else FLOW_GRID - torch.tensor([1e-3, 0, 0, 0, 0, 0])
    t = solvers.get(solver)(grid, **({"order": 2} if solver == "unipc" else {})).tabulate(noise)
    done = export(t, "diffusers", **how)
    spoilt = {"shift": 9.0, "shift_terminal": 0.1, "use_karras_sigmas": True}
    scheduler, given, ready = run_by_diffusers(done.text, "FlowMatchEulerDiscreteScheduler", **spoilt)
    assert type(scheduler).__name__ == done.sampler
    ready.set_timesteps(**given, **how if "mu" in how else {})
    torch.testing.assert_close(ready.sigmas.double(), noise.sigma(grid), rtol=2e-6, atol=1e-7)
    traced = fs.from_sampler(scheduler, noise=noise, **given, **how if "mu" in how else {})
    assert apart(traced, done.runs) < 1e-5
    told = ready.timesteps.double()
    called = list(done.runs.evaluated)
    torch.testing.assert_close(told, 1000 * noise.sigma(done.runs.model_times[called]), rtol=1e-5, atol=2e-3)
    assert any("before the scheduler's own" in note for note in done.notes)
    assert any("integer times" in note for note in done.notes) == (solver == "unipc")


def test_shift_and_mu_together_are_refused():
    t = solvers.euler(FLOW_GRID).tabulate(Flow())
    with pytest.raises(ArgumentError, match="give one of them"):
        export(t, "diffusers", shift=3.0, mu=1.0)


def nearest_index(sigma):
    """ModelSamplingDiscrete.timestep: the nearest log sigma of the table."""
    levels = SD.ratio(torch.arange(1000, dtype=torch.float64)).log()
    return int((levels - math.log(sigma)).abs().argmin())


def test_comfyui_is_told_the_integers_that_we_say():
    grid = torch.tensor([999.0, 700.4, 300.7, 40.5, 2.4, 0.45, -1], dtype=torch.float64)
    t = solvers.dpmpp_2m(grid, lower_order_final=False).tabulate(SD)
    done = export(t, "comfyui")
    read = [float(v) for v in COMFY.findall(done.text)]
    assert done.runs.model_times[:6].tolist() == [nearest_index(s) for s in read[:-1]]
    worst = max(abs(SD.ratio(float(nearest_index(s))).item() / s - 1) for s in read[:-1])
    assert worst > 0.05  # the low levels lie far apart
    assert any(f"{worst:.2%}" in note for note in done.notes)


def test_comfyui_really_runs_the_table_with_rounded_times():
    """An eps network in ComfyUI: c_in of the true sigma, the integer time, x0 = x - sigma eps; against our `runs`."""
    grid = torch.tensor([999.0, 700.4, 300.7, 40.5, 2.4, -1], dtype=torch.float64)
    done = export(solvers.dpmpp_2m(grid, lower_order_final=False).tabulate(SD), "comfyui")
    eps = lambda x, t: torch.tanh(x * (1 + t / 500)) + 0.1 * math.cos(t)  # noqa: E731
    unit = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = [float(v) for v in COMFY.findall(done.text)]
    x, old = unit * sigmas[0], None
    for i, (s, r) in enumerate(itertools.pairwise(sigmas)):  # k-diffusion's DPM++ 2M
        x0 = x - s * eps(x / (1 + s**2) ** 0.5, nearest_index(s))
        d = x0
        if i and r:
            h, last = math.log(s / r), math.log(sigmas[i - 1] / s)
            d = (1 + h / last / 2) * x0 - h / last / 2 * old
        x, old = (r / s * x - ((r / s) - 1) * d if r else d), x0
    fn = lambda z, t, _: (z - SD.sigma(t) * eps(z, float(t))) / SD.alpha(t)  # noqa: E731
    model = fs.Denoiser(fn, noise=SD, shape=(3,), dtype=torch.float64)
    ours = fs.sample(model, done.runs, start=unit * done.runs.sigma[0])
    torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


def test_snapped_times_are_what_comfyui_tells():
    grid = torch.tensor([999.0, 700.4, 300.7, 40.5, 2.4, 0.45, -1], dtype=torch.float64)
    t = snapped(solvers.dpmpp_2m(grid, lower_order_final=False).tabulate(SD))
    assert t.times.tolist() == [999, 700, 301, 40, 2, 0, -1] or t.times.tolist() == [999, 700, 301, 41, 2, 0, -1]
    assert t.verify() is t
    done = export(t, "comfyui")
    assert done.runs.isclose(t)
    assert not any("integer" in note for note in done.notes)
    assert snapped(table(EDM())).isclose(table(EDM()))
    with pytest.raises(ArgumentError, match="no decisions"):
        snapped(dataclasses.replace(t, schedule=None))
    crowded = solvers.euler(torch.tensor([999.0, 20.3, 20.1, -1], dtype=torch.float64)).tabulate(SD)
    with pytest.raises(ArgumentError, match="same integer"):
        snapped(crowded)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "euler_ancestral"])
def test_stable_diffusion_cpp_reads_the_command(name):
    """Its parser: split at commas, strip blanks, stof; one level more than steps."""
    options = {"lower_order_final": False} if name == "dpmpp_2m" else {}
    t = table(SD, name, 5, **options)
    done = export(t, "sdcpp")
    words = shlex.split(done.text)
    read = [float(item.strip()) for item in words[words.index("--sigmas") + 1].strip("[]").split(",") if item.strip()]
    torch.testing.assert_close(
        torch.tensor(read, dtype=torch.float64), SD.ratio(times.karras(SD, 5)), rtol=1e-9, atol=0
    )
    assert int(words[words.index("--steps") + 1]) == len(read) - 1
    assert words[words.index("--sampling-method") + 1] == done.sampler
    assert ("--eta" in words) == (name == "euler_ancestral")
    assert done.runs.isclose(t)


def test_the_webui_has_labels_and_drops_a_level_for_dpm2():
    done = export(table(SD, "heun", 5), "a1111")
    assert done.sampler == "Heun" and numbers(done.text)[-1] == 0
    assert any("5 steps" in note for note in done.notes)
    with pytest.raises(LossyExport, match="no sampler of a1111"):
        export(table(SD, "dpm_2", 5), "a1111")


def test_sd_next_takes_three_integers_or_more():
    done = export(table(SD, "dpmpp_2m", 6), "sdnext")
    read = [int(v) for v in re.split(",| ", done.text) if v.isdigit()]
    assert read == [round(v) for v in times.karras(SD, 6)[:-1].tolist()]
    assert done.sampler == "DPM++ 2M"
    with pytest.raises(LossyExport, match="fewer than three"):
        export(table(SD, "euler", 2), "sdnext", accept_loss=True)
    with pytest.raises(LossyExport, match="integer times"):
        export(table(EDM()), "sdnext", accept_loss=True)


def test_losses_have_sizes():
    grid = times.karras(SD, 5) - torch.tensor([0, 0.4, 0.3, 0.4, 0, 0])
    moved = dataclasses.replace(solvers.dpmpp_2m(grid), model_times=grid * 0.97).tabulate(SD)
    with pytest.raises(LossyExport, match=r"states \(by up to \d+\.\d+%\).*row's largest weight.*off by up to \d"):
        export(moved, "comfyui")
    heun = dataclasses.replace(table(SD, "heun", 4), schedule=None, name="", B=table(SD, "heun", 4).B * 1.1)
    with pytest.raises(LossyExport, match=r"the nearest, heun, is off by up to 0\.1"):
        export(heun, "k-diffusion")
    third = solvers.get("dpm_solver_3")(times.karras(SD, 3)).tabulate(SD)
    with pytest.raises(LossyExport, match=r"with \d+ network calls for 7"):
        export(third, "diffusers")


def test_unipc_from_pure_noise_starts_a_little_below_and_says_so():
    noise = Flow(shift=3.0)
    t = solvers.unipc(FLOW_GRID, order=2).tabulate(noise)
    done = export(t, "diffusers")
    scheduler, given, _ = run_by_diffusers(done.text, "FlowMatchEulerDiscreteScheduler")
    assert apart(fs.from_sampler(scheduler, noise=noise, **given), done.runs) < 1e-5
    assert 1e-3 < done.difference < 0.2
    assert any("starts at 1 - 1e-6" in note for note in done.notes)
    assert any(f"differs from this one by up to {done.difference:.2g}" in note for note in done.notes)
