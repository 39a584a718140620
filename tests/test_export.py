"""Text for other programs reads back as the same numbers, by each host's own conventions, and says what it loses."""

import dataclasses
import re

import pytest
import torch

from fewstep import solvers, times
from fewstep.errors import ArgumentError, LossyExport
from fewstep.export import K_DIFFUSION, TARGETS, Export, export, fixed, solver_of
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
    assert done.sampler == ""
    assert "weights of learned" in done.losses[0]


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
        export(t, "webui")
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
