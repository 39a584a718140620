"""Pipelines of every diffusers family with small random networks: built from configurations, nothing is downloaded.

    tiny = tiny_pipelines.build("sdxl")
    latents = tiny.run(steps=4)

The weights depend on the name alone. `build` caches: a test that changes a pipeline takes `fresh(name)`, and one that
only changes its scheduler calls `tiny.run(scheduler=...)`, which puts the old one back.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor

WORDS = ("a", "cat", "dog", "photo", "of", "red", "small", "blurry")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
Modules = dict[str, Any]


@dataclass
class TinyPipeline:
    """A pipeline, and what it is called with.

    Attributes:
        name: the family, one of `NAMES`.
        pipe: the pipeline, on the CPU in float32, without a progress bar.
        inputs: the call's arguments, but for the number of steps and the generator.
        shape: of the latents as the scheduler sees them, batch included.
    """

    name: str
    pipe: Any
    inputs: dict[str, Any]
    shape: tuple[int, ...]

    def run(self, steps: int | None = None, *, seed: int = 0, scheduler: Any = None, **inputs: Any) -> Tensor:
        """The final latents of one call; the noise is a function of `seed`."""
        options = {"num_inference_steps": steps} if steps is not None else {}
        call = self.inputs | options | {"generator": torch.Generator("cpu").manual_seed(seed)} | inputs
        with self.scheduled(scheduler), _latents_of(self.pipe) as seen, torch.no_grad():
            out = self.pipe(**call, return_dict=False)[0]
        return seen[-1] if seen else out

    @contextmanager
    def scheduled(self, scheduler: Any) -> Iterator[None]:
        """The pipeline with another scheduler, for a while."""
        before = self.pipe.scheduler
        if scheduler is not None:
            self.pipe.scheduler = scheduler
        try:
            yield
        finally:
            self.pipe.scheduler = before

    @property
    def network(self) -> Any:
        """The denoising network (of Wan 2.2, the expert of high noise)."""
        return getattr(self.pipe, "unet", None) or self.pipe.transformer


@contextmanager
def _latents_of(pipe: Any) -> Iterator[list[Tensor]]:
    """DiT cannot be asked for its latents: they are what it gives its decoder, unscaled."""
    seen: list[Tensor] = []
    if not isinstance(pipe, diffusers.DiTPipeline):
        yield seen
        return
    decode = pipe.vae.decode

    def recording(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(z * pipe.vae.config.scaling_factor)
        return decode(z, *args, **kwargs)

    pipe.vae.decode = recording
    try:
        yield seen
    finally:
        del pipe.vae.decode


# ------------------------------------------------------------------------------------------------ text encoders
def clip_tokenizer() -> Any:
    """Whole words of `WORDS`, single letters for anything else."""
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    merges: list[tuple[str, str]] = []
    for token in (*LETTERS, *(letter + "</w>" for letter in LETTERS)):
        vocab[token] = len(vocab)
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair, joined = (pieces[0], pieces[1]), pieces[0] + pieces[1]
            merges += [pair] if pair not in merges else []
            vocab.setdefault(joined, len(vocab))
            pieces[:2] = [joined]
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=16)


def clip_text(projected: bool = False) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(clip_tokenizer()), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, projection_dim=16, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def t5_tokenizer() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *("▁" + word for word in WORDS), *LETTERS]
    vocab = [(piece, -float(rank)) for rank, piece in enumerate(pieces)]
    return transformers.T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=16)


def t5_text(width: int = 16, multilingual: bool = False) -> Any:
    kinds = (transformers.UMT5Config, transformers.UMT5EncoderModel)
    config, model = kinds if multilingual else (transformers.T5Config, transformers.T5EncoderModel)
    return model(config(vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2))


# ------------------------------------------------------------------------------------------------- networks, VAEs
def vae(channels: int = 4, **options: Any) -> Any:
    """Pixels to latents of half the size."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=channels, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **options,
    )  # fmt: skip


def unet(in_channels: int = 4, **options: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=in_channels, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=2, **({"cross_attention_dim": 16} | options),
    )  # fmt: skip


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _pndm(prediction: str = "epsilon") -> Any:
    """What Stable Diffusion's repositories name."""
    return diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1, prediction_type=prediction)


def _stable_diffusion(pipeline: str = "StableDiffusionPipeline", *, channels: int = 4, **scheduler: Any) -> Any:
    return getattr(diffusers, pipeline)(
        vae=vae(), unet=unet(channels), scheduler=_pndm(**scheduler), text_encoder=clip_text(),
        tokenizer=clip_tokenizer(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _controlled() -> Any:
    pipe = _stable_diffusion()
    net = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16))  # half the size
    for part in net.parameters():  # its last layers begin at zero
        torch.nn.init.normal_(part, std=0.1)
    return diffusers.StableDiffusionControlNetPipeline(**pipe.components, controlnet=net, requires_safety_checker=False)


def _sdxl() -> Any:
    addition = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "cross_attention_dim": 32}
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(), unet=unet(**addition, projection_class_embeddings_input_dim=16 + 6 * 8),
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        text_encoder=clip_text(), tokenizer=clip_tokenizer(), text_encoder_2=clip_text(projected=True),
        tokenizer_2=clip_tokenizer(), add_watermarker=False,
    )  # fmt: skip


def _sd3(pipeline: str = "StableDiffusion3Pipeline", channels: int = 4) -> Any:
    return getattr(diffusers, pipeline)(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=1, in_channels=channels, out_channels=channels, num_layers=1,
            attention_head_dim=8, num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16,
            pooled_projection_dim=32,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(channels, shift_factor=0.06, scaling_factor=1.5), text_encoder=clip_text(True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(True), tokenizer_2=clip_tokenizer(), text_encoder_3=t5_text(32),
        tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def _flux(pipeline: str = "FluxPipeline") -> Any:
    return getattr(diffusers, pipeline)(
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(channels=1, shift_factor=0.12, scaling_factor=0.36), text_encoder=clip_text(),
        tokenizer=clip_tokenizer(), text_encoder_2=t5_text(), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def _pixart() -> Any:
    return diffusers.PixArtSigmaPipeline(
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
            out_channels=8, caption_channels=16, cross_attention_dim=16,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
        vae=vae(), text_encoder=t5_text(), tokenizer=t5_tokenizer(),
    )  # fmt: skip


def _dit() -> Any:
    return diffusers.DiTPipeline(
        transformer=diffusers.DiTTransformer2DModel(
            sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
            out_channels=8, num_embeds_ada_norm=1000,
        ),
        vae=vae(), scheduler=diffusers.DDIMScheduler(clip_sample=False),
    )  # fmt: skip


def _wan_network() -> Any:
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=16, freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=16,
    )  # fmt: skip


def _wan(experts: int = 1) -> Any:
    second = {"transformer_2": _wan_network(), "boundary_ratio": 0.875} if experts == 2 else {}
    return diffusers.WanPipeline(
        transformer=_wan_network(), vae=diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, num_res_blocks=1),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        text_encoder=t5_text(multilingual=True), tokenizer=t5_tokenizer(), **second,
    )  # fmt: skip


def _ltx() -> Any:
    return diffusers.LTXPipeline(
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            num_layers=1, caption_channels=16,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
        vae=diffusers.AutoencoderKLLTXVideo(
            latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
            layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, patch_size=1,
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
        ),
        text_encoder=t5_text(), tokenizer=t5_tokenizer(),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- the families
PROMPT = {"prompt": "a small red cat", "output_type": "latent"}
SQUARE = {"height": 16, "width": 16}
GUIDED = PROMPT | SQUARE | {"negative_prompt": "blurry", "guidance_scale": 3.0}


def picture(channels: int = 3) -> Tensor:
    """A smooth picture `[1, channels, 16, 16]` in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    return torch.stack([(x * (k + 1) + y * 2).sin().abs() for k in range(channels)])[None]


def mask() -> Tensor:
    """One in the right half, which inpainting draws anew."""
    halves = torch.zeros(1, 1, 16, 16)
    halves[..., 8:] = 1
    return halves


SHORT = {"max_sequence_length": 16}
FLUX = PROMPT | SQUARE | SHORT | {"guidance_scale": 3.5}


def _redrawn() -> dict[str, Any]:
    return {"image": picture(), "strength": 0.6}


def _painted(strength: float = 1.0) -> dict[str, Any]:
    return {"image": picture(), "mask_image": mask(), "strength": strength}


Builder = tuple[Callable[[], Any], Callable[[], dict[str, Any]], tuple[int, ...]]

_FAMILIES: dict[str, Builder] = {
    "sd": (_stable_diffusion, lambda: dict(GUIDED), (1, 4, 8, 8)),
    "sd-v": (lambda: _stable_diffusion(prediction="v_prediction"), lambda: dict(GUIDED), (1, 4, 8, 8)),
    "sd-img2img": (
        lambda: _stable_diffusion("StableDiffusionImg2ImgPipeline"),
        lambda: {k: v for k, v in GUIDED.items() if k not in SQUARE} | _redrawn(),
        (1, 4, 8, 8),
    ),
    "sd-inpaint": (
        lambda: _stable_diffusion("StableDiffusionInpaintPipeline"), lambda: GUIDED | _painted(), (1, 4, 8, 8),
    ),
    "sd-inpaint-9": (
        lambda: _stable_diffusion("StableDiffusionInpaintPipeline", channels=9), lambda: GUIDED | _painted(),
        (1, 4, 8, 8),
    ),
    "sdxl": (_sdxl, lambda: dict(GUIDED), (1, 4, 8, 8)),
    "sd-controlnet": (_controlled, lambda: GUIDED | {"image": picture()}, (1, 4, 8, 8)),
    "sd3": (_sd3, lambda: GUIDED | SHORT, (1, 4, 8, 8)),
    "sd3-img2img": (lambda: _sd3("StableDiffusion3Img2ImgPipeline"), lambda: GUIDED | SHORT | _redrawn(), (1, 4, 8, 8)),
    "sd3-inpaint": (  # keeps what is not masked where its network has 16 channels
        lambda: _sd3("StableDiffusion3InpaintPipeline", 16), lambda: GUIDED | SHORT | _painted(0.6), (1, 16, 8, 8),
    ),
    "flux": (_flux, lambda: dict(FLUX), (1, 16, 4)),
    "flux-img2img": (lambda: _flux("FluxImg2ImgPipeline"), lambda: FLUX | _redrawn(), (1, 16, 4)),
    "flux-inpaint": (lambda: _flux("FluxInpaintPipeline"), lambda: FLUX | _painted(0.6), (1, 16, 4)),
    "pixart": (
        _pixart,
        lambda: GUIDED | SHORT | {"use_resolution_binning": False, "clean_caption": False},
        (1, 4, 8, 8),
    ),
    "dit": (_dit, lambda: {"class_labels": [207], "guidance_scale": 3.0, "output_type": "np"}, (2, 4, 8, 8)),
    "wan": (_wan, lambda: GUIDED | SHORT | {"height": 64, "width": 64, "num_frames": 5}, (1, 16, 2, 8, 8)),
    "wan-2.2": (
        lambda: _wan(experts=2),
        lambda: GUIDED | SHORT | {"height": 64, "width": 64, "num_frames": 5, "guidance_scale_2": 2.0},
        (1, 16, 2, 8, 8),
    ),
    "ltx": (_ltx, lambda: GUIDED | SHORT | {"height": 32, "width": 32, "num_frames": 9}, (1, 192, 8)),
}  # fmt: skip
NAMES = tuple(_FAMILIES)


def fresh(name: str) -> TinyPipeline:
    """A pipeline of one of `NAMES`, not shared with anybody."""
    make, inputs, shape = _FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little"))
        pipe = make()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return TinyPipeline(name, pipe, inputs(), shape)


_shared = functools.cache(fresh)


def build(name: str) -> TinyPipeline:
    """The shared pipeline of one of `NAMES`: do not change its parts."""
    tiny = _shared(name)
    return TinyPipeline(name, tiny.pipe, copy.copy(tiny.inputs), tiny.shape)
