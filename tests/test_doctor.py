"""Every trap is found on a configuration that has it, with its size, and not on one that has not."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.doctor import CHECKS, examine
from fewstep.errors import ArgumentError

pytest.importorskip("diffusers")

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
DPM = SD | {"_class_name": "DPMSolverMultistepScheduler"}
EULER = SD | {"_class_name": "EulerDiscreteScheduler"}
SD3 = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
FLUX = SD3 | {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
PLAIN = SD3 | {"shift": 1.0}
WAN = {"_class_name": "UniPCMultistepScheduler", "num_train_timesteps": 1000, "use_flow_sigmas": True,
       "prediction_type": "flow_prediction", "flow_shift": 5.0}  # fmt: skip
DYNAMIC_DPM = DPM | {
    "use_flow_sigmas": True, "use_dynamic_shifting": True, "prediction_type": "flow_prediction", "flow_shift": 1.0,
    "time_shift_type": "exponential",
}  # fmt: skip


def found(config, steps=8, **how):
    """Findings by name."""
    return {finding.check: finding for finding in examine(config, steps, **how).findings}


def measured(config, check, steps=8, **how):
    return found(config, steps, **how)[check].measured


def test_double_shift():
    told = measured(SD3, "double-shift", 4)
    assert told["sigmas"] == pytest.approx([1, 0.8577, 0.6022, 0.0089, 0], abs=6e-5)
    eight = measured(SD3, "double-shift", 8)["sigmas"]
    assert eight == pytest.approx([1, 0.9475, 0.8828, 0.8008, 0.6938, 0.548, 0.338, 0.0089, 0], abs=6e-5)
    assert told["once"][-2] == pytest.approx(0.003, abs=1e-4)
    assert "double-shift" not in found(PLAIN) and "double-shift" not in found(FLUX) and "double-shift" not in found(DPM)


def test_custom_sigmas_are_shifted():
    told = measured(SD3, "custom-sigmas-shifted")
    assert told["runs"] == pytest.approx([1, 0.9231, 0.75, 0.4286, 0], abs=6e-5)
    flux = measured(FLUX, "custom-sigmas-shifted", mu=0.45937)
    assert flux["runs"] == pytest.approx([1, 0.8636, 0.6129, 0.2836, 0], abs=2e-4)
    assert measured(WAN, "custom-sigmas-shifted")["shift"] == 5
    assert "custom-sigmas-shifted" not in found(PLAIN) and "custom-sigmas-shifted" not in found(EULER)


def test_the_cure_for_shifted_sigmas_is_right():
    import diffusers

    told = measured(SD3, "custom-sigmas-shifted")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=told["unshifted"])
    assert scheduler.sigmas.tolist() == pytest.approx([*told["given"], 0], abs=2e-4)


def test_timesteps_beside_sigmas():
    told = measured(SD3, "timesteps-beside-sigmas")
    assert told["told"][1] == 800 and told["sigmas"][1] == pytest.approx(0.9231, abs=6e-5)
    assert "timesteps-beside-sigmas" not in found(PLAIN)
    assert "timesteps-beside-sigmas" not in found(WAN)


def test_integer_times_of_flows():
    told = measured(WAN, "integer-times", 4)
    assert told["told"] == [999, 937, 833, 625]
    assert told["sigmas"] == pytest.approx([0.999999, 0.9376, 0.8336, 0.6259], abs=6e-5)
    assert 0.0005 < told["largest"] <= 0.001
    assert "integer-times" not in found(SD3) and "integer-times" not in found(DPM)


def test_refused_inputs():
    assert measured(WAN, "refused-inputs")["raises"] == {"sigmas as a list": "TypeError"}
    dpm = DPM | {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    assert measured(dpm, "refused-inputs")["raises"] == {"timesteps": "TypeError"}
    assert "refused-inputs" not in found(SD3) and "refused-inputs" not in found(DPM)


def test_mutated_configuration():
    told = measured(DYNAMIC_DPM, "mutated-config", mu=1.0)
    assert told["changed"] == {"flow_shift": [1.0, pytest.approx(2.71828, abs=1e-4)]}
    assert told["saved"] == []  # the attribute that set_timesteps reads changes, the dictionary that is saved does not
    assert "mutated-config" not in found(FLUX) and "mutated-config" not in found(DPM)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_rounded_times(name):
    karras = SD | {"_class_name": name, "use_karras_sigmas": True}
    ten = measured(karras, "rounded-times", 10)
    assert ten["largest"] == pytest.approx(0.0185, abs=3e-4)
    assert ten["call"] == 9 and ten["told"][8] == 7
    eight = measured(karras, "rounded-times", 8)
    assert eight["largest"] == pytest.approx(0.002, abs=5e-4)
    assert "rounded-times" not in found(SD | {"_class_name": name})
    assert "rounded-times" not in found(SD3)


def test_repeated_times():
    cosine = {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "squaredcos_cap_v2",
              "use_karras_sigmas": True}  # fmt: skip
    told = measured(cosine, "repeated-times", 20)
    assert told == {"steps": 20, "distinct": 12}
    assert "repeated-times" not in found(DPM, 20)
    assert "repeated-times" not in found(SD | {"_class_name": "HeunDiscreteScheduler"}, 6)


def test_noise_that_stays():
    told = measured(EULER | {"final_sigmas_type": "sigma_min"}, "noise-stays")
    assert told["last"] == pytest.approx(0.0292, abs=1e-4)
    assert "noise-stays" not in found(EULER)


def test_half_precision_tables():
    assert 1e-3 < measured(DPM, "half-precision-tables", 10)["largest"] < 8e-3
    assert 1e-4 < measured(EULER, "half-precision-tables", 10)["largest"] < 8e-3
    assert "half-precision-tables" not in found(SD3)


def pipeline(tmp_path, name, config):
    (tmp_path / "scheduler").mkdir(exist_ok=True)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    return tmp_path


def test_unscaled_input(tmp_path):
    linear = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    assert measured(pipeline(tmp_path, "DDPMPipeline", linear), "unscaled-input")["scale"] > 100
    assert "unscaled-input" not in found(pipeline(tmp_path, "DDPMPipeline", DPM))
    assert "unscaled-input" not in found(pipeline(tmp_path, "StableDiffusionPipeline", EULER))


def test_wrong_family(tmp_path):
    swapped = SD3 | {"_class_name": "EulerDiscreteScheduler", "use_dynamic_shifting": False, "base_shift": 0.5}
    told = measured(swapped, "wrong-family")
    assert set(told["foreign"]) == {"use_dynamic_shifting", "base_shift"} and told["prediction"] == "epsilon"
    assert told["start"] > 10  # a flow's states begin at 1
    assert "wrong-family" in found(pipeline(tmp_path, "FluxPipeline", EULER))
    assert "wrong-family" in found(pipeline(tmp_path, "StableDiffusionPipeline", SD3))
    for config in (EULER, DPM, SD3, FLUX, WAN):
        assert "wrong-family" not in found(config)
    assert "wrong-family" not in found(pipeline(tmp_path, "WanPipeline", WAN))


def test_image_to_image(tmp_path):
    down, up = {"0.2": 0, "0.3": 1, "0.5": 2, "0.75": 3}, {"0.2": 1, "0.3": 2, "0.5": 2, "0.75": 3}
    assert measured(DPM, "image-to-image", 4)["steps"] == down
    assert measured(SD3, "image-to-image", 4)["steps"] == up
    assert measured(pipeline(tmp_path, "WanVideoToVideoPipeline", WAN), "image-to-image", 4)["steps"] == down
    assert "image-to-image" not in found(DPM, 30)


def test_no_schedule_of_ones_own():
    assert "no-own-schedule" in found(SD | {"_class_name": "DEISMultistepScheduler"})
    assert "no-own-schedule" in found(SD | {"_class_name": "UniPCMultistepScheduler"})
    assert "no-own-schedule" in found(DPM | {"use_flow_sigmas": True, "prediction_type": "flow_prediction"})
    for config in (EULER, DPM, SD3, WAN):
        assert "no-own-schedule" not in found(config)


def test_handed_sigmas(tmp_path):
    """Qwen-Image's pipeline passes a list of its own; SD3's does not, and Flux's not to a UniPC for flows."""
    qwen = pipeline(tmp_path, "QwenImagePipeline", FLUX)
    told = measured(qwen, "handed-sigmas", 4, mu=0.45937)
    assert told["handed"] == [1, 0.75, 0.5, 0.25] and told["falling"]
    assert told["runs"] == pytest.approx([1, 0.8261, 0.6129, 0.3454, 0], abs=1e-4)
    assert told["own"][-2] == pytest.approx(0.0016, abs=1e-4) and told["largest"] == pytest.approx(0.3438, abs=1e-3)
    assert found(pipeline(tmp_path, "ChromaPipeline", DYNAMIC_DPM))["handed-sigmas"].severity == "trap"  # ValueError
    karras = found(pipeline(tmp_path, "ChromaPipeline", WAN | {"use_karras_sigmas": True}), 4)["handed-sigmas"]
    assert karras.severity == "trap" and karras.measured["runs"] == [*sorted(karras.measured["runs"][:-1]), 0]
    for name, config in (("StableDiffusion3Pipeline", SD3), ("FluxPipeline", WAN), ("NobodysPipeline", FLUX)):
        assert "handed-sigmas" not in found(pipeline(tmp_path, name, config))
    assert "handed-sigmas" not in found(FLUX)


def test_what_the_doctor_says_of_handed_sigmas_happens():
    """The error and the levels, in the pipelines themselves."""
    import diffusers

    from tests import tiny_pipelines

    tiny = tiny_pipelines.build("ltx")
    with pytest.raises(ValueError, match="custom sigmas"):
        tiny.run(2, scheduler=diffusers.DPMSolverMultistepScheduler.from_config(DYNAMIC_DPM))
    unipc = diffusers.UniPCMultistepScheduler.from_config(WAN | {"use_karras_sigmas": True})
    tiny.run(4, scheduler=unipc)
    assert unipc.sigmas[:-1].tolist() == sorted(unipc.sigmas[:-1].tolist())


@pytest.mark.parametrize(
    ("config", "error"),
    [(DPM, "IndexError"), (EULER, "IndexError"), (SD3, "IndexError"), (WAN, "AssertionError")],
)
def test_a_step_past_the_end_that_is_an_error(config, error):
    finding = found(config)["past-the-end"]
    assert finding.severity == "note" and finding.measured == {"raises": error}


def test_a_step_past_the_end_that_nobody_notices():
    ddim = found(SD | {"_class_name": "DDIMScheduler"}, 6)["past-the-end"]
    assert ddim.severity == "trap" and "repeats the last" in ddim.what
    assert 0.01 < ddim.measured["moved"] < 0.2
    heun = found(SD | {"_class_name": "HeunDiscreteScheduler"}, 6)["past-the-end"]
    assert heun.severity == "trap" and "NaN" in heun.what and heun.measured["moved"] is None
    assert "past-the-end" not in found(SD | {"_class_name": "PNDMScheduler"})  # another step changes nothing


def test_waits_for_the_device():
    assert measured(SD | {"_class_name": "DDIMScheduler"}, "host-syncs", 6) == {"reads": [6] * 5 + [4], "total": 34}
    assert measured(SD | {"_class_name": "DDPMScheduler"}, "host-syncs", 6)["total"] > 34
    for config in (DPM, EULER, SD3, WAN):
        assert "host-syncs" not in found(config)


def test_reads_are_those_of_tensors_on_the_device():
    import torch

    from fewstep.doctor.loop import Device

    there, here = torch.tensor([0.5, 2.0]), torch.tensor(1.0)
    with Device(there) as device:
        assert float(here) == 1 and bool(here > 0)  # the processor's own
        assert device.reads == 0
        moved = (there * here)[1]
        assert float(moved) == 2 and bool(moved > 1) and (there > 1).nonzero().tolist() == [[1]]
    assert device.reads == 3


def test_graphs_of_a_compiled_step():
    assert "compiled-step" not in found(SD3, 4)  # not asked for
    told = measured(SD3, "compiled-step", 4, compiling=True)
    assert told["total"] == sum(told["graphs"]) > 1 and len(told["graphs"]) == 4
    assert "compiled-step" not in found(SD3, 1, compiling=True)


@pytest.mark.parametrize(
    "name",
    ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler",
     "KDPM2DiscreteScheduler", "EulerAncestralDiscreteScheduler", "DEISMultistepScheduler", "IPNDMScheduler",
     "DPMSolverSinglestepScheduler", "SASolverScheduler", "LCMScheduler", "FlowMatchHeunDiscreteScheduler",
     "FlowMatchLCMScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"],
)  # fmt: skip
def test_every_scheduler_can_be_examined(name):
    assert examine({"_class_name": name}, 6).scheduler == name


def test_the_command_reads_folders_and_files(tmp_path):
    place = pipeline(tmp_path, "StableDiffusion3Pipeline", SD3)
    for path in (place, place / "scheduler", place / "scheduler" / "scheduler_config.json"):
        told = CliRunner().invoke(app, ["doctor", str(path), "--steps", "4", "--json"])
        assert told.exit_code == 0, told.output
        data = json.loads(told.stdout)
        assert data["pipeline"] == "StableDiffusion3Pipeline" and len(data["checks"]) == len(CHECKS)
        assert data["findings"][0]["check"] == "double-shift"
    text = CliRunner().invoke(app, ["doctor", str(place), "--steps", "4"]).stdout
    assert "! double-shift: " in text and "0.8577" in text
    for bad, match in (({"shift": 3}, "_class_name"), ({"_class_name": "Unknown"}, "did you mean")):
        with pytest.raises(ArgumentError, match=match):
            examine(bad)
    with pytest.raises(ArgumentError, match="holds no scheduler_config"):
        examine(tmp_path / "nothing")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ArgumentError, match="download it again"):
        examine(tmp_path / "broken.json")
