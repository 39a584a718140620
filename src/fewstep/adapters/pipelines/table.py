"""Which adapter takes which pipeline."""

from __future__ import annotations

from typing import Any

from fewstep.adapters.pipelines.family import Ask, Family
from fewstep.adapters.pipelines.pictures import DiT, Flux, PixArt, StableDiffusion, StableDiffusion3, StableDiffusionXL
from fewstep.adapters.pipelines.videos import LTX, Wan
from fewstep.errors import ArgumentError

FAMILIES: dict[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionImg2ImgPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "StableDiffusion3Img2ImgPipeline": StableDiffusion3,
    "PixArtAlphaPipeline": PixArt,
    "PixArtSigmaPipeline": PixArt,
    "DiTPipeline": DiT,
    "FluxPipeline": Flux,
    "FluxImg2ImgPipeline": Flux,
    "WanPipeline": Wan,
    "LTXPipeline": LTX,
}
"""Pipelines by the name of their class, to the letter: a subclass may guide or scale in another way."""

SPECIAL = {
    "QwenImage": "it renormalises the guided prediction, which no weighted sum of its two predictions does",
    "CogVideoX": "its scheduler takes part in the guidance",
    "StableDiffusionControlNet": "it needs a control image in every call",
    "StableDiffusionInpaint": "its network also takes the mask and the masked image",
}
"""Families that are refused for a reason of their own, by how their class names begin."""


def family_named(name: str) -> type[Family]:
    """The adapter of pipelines whose class has that name.

    Errors: `ArgumentError` for a class that is not known.
    """
    family = FAMILIES.get(name)
    if family is None:
        reason = next((f": {why}" for start, why in SPECIAL.items() if name.startswith(start)), "")
        raise ArgumentError(
            f"{name} has no adapter here{reason}. Known are {', '.join(FAMILIES)}; wrap the network of any other with "
            "fewstep.from_callable"
        )
    return family


def family_of(pipe: Any, ask: Ask) -> Family:
    """The adapter of a pipeline.

    Errors: `ArgumentError` for a class that is not known, a pipeline that lacks its network, or one whose calls depend
        on more than a state, a time and a prompt.
    """
    name = type(pipe).__name__
    family = family_named(name)
    if family is not Wan and getattr(pipe, family.component, None) is None:
        raise ArgumentError(f"this {name} has no {family.component}: load the pipeline with it")
    made = family(pipe, ask)
    for part, network in made.networks().items():
        if getattr(network, "is_cache_enabled", False):
            raise ArgumentError(
                f"the {part} keeps results from one step to the next, so its output depends on earlier calls: call "
                f"pipe.{part}.disable_cache() first"
            )
        if getattr(network.config, "encoder_hid_dim_type", None) == "ip_image_proj":
            raise ArgumentError(f"the {part} has an IP-Adapter, which needs pictures: unload it, or use from_callable")
    return made
