"""Where downloaded weights come from: repositories and releases, with licences."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema


def separated(value: object) -> object:
    """Takes a text with commas apart; what is no text stays as it is."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _none_is_empty(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(names):
        raise ValueError("one of the names is empty; leave out the comma")
    return names


Names = Annotated[tuple[str, ...], BeforeValidator(separated), AfterValidator(_none_is_empty)]
"""Names, as a list or as one text with commas."""


class Frozen(BaseModel):
    """A value: fields cannot be set, unknown ones are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class HubModel(Frozen):
    """Weights in a Hugging Face repository."""

    repo: str
    """Repository id, owner/name."""
    files: Names
    """Glob patterns of the files that are needed, with commas; nothing else is downloaded."""
    licence: str
    """Licence of the weights, as an SPDX expression; NOASSERTION where we know of none."""
    gated: bool = False
    """Whether the repository asks its users to accept its terms first."""
    revision: str | None = None
    """Commit to download. When null: the one that this version pins (docs/weights.md), else the
    newest, which the lock file then keeps."""

    @property
    def name(self) -> str:
        """What messages and the lock file call it."""
        return self.repo

    @property
    def folder(self) -> str:
        """Name of its folder below the models folder."""
        return self.repo.replace("/", "--")

    @property
    def page(self) -> str:
        """Where a person reads about it and accepts its terms."""
        return f"https://huggingface.co/{self.repo}"


class ReleaseModel(Frozen):
    """Weights in one file at a fixed address."""

    name: str
    """What rembg, messages and the lock file call it."""
    url: str
    """Where the file is downloaded from; its last part is the file's name."""
    md5: str | None = None
    """MD5 of the file as its publisher states it, in hexadecimal; null if it states none."""
    sha256_start: str | None = None
    """First digits of the file's SHA-256 as its publisher states them, in hexadecimal; or null."""
    licence: str
    """Licence of the weights, as an SPDX identifier."""
    page: str
    """Where a person reads about it."""

    @model_validator(mode="after")
    def _states_a_digest(self) -> "ReleaseModel":
        if not (self.md5 or self.sha256_start):
            raise ValueError(f"{self.name} needs what its publisher states: md5 or sha256_start")
        return self

    @property
    def folder(self) -> str:
        """Name of its folder below the models folder."""
        return self.name

    @property
    def file(self) -> str:
        """Name of its only file."""
        return self.url.rsplit("/", 1)[-1]


ModelSource = HubModel | ReleaseModel


class ShortNames:
    """Marks a field, by `Annotated`, whose model may also be given by a short name.

    Args:
        models: By their short names.
    """

    def __init__(self, models: Mapping[str, ModelSource]) -> None:
        self.models = models

    def resolve(self, value: object) -> object:
        """Returns the model of a short name; what is no text stays as it is.

        Raises:
            ValueError: There is no such name.
        """
        if not isinstance(value, str):
            return value
        if value not in self.models:
            *names, last = self.models
            raise ValueError(
                f"the short names are {', '.join(names)} and {last}; any other model is "
                "given by its fields, such as model.repo or model.url"
            )
        return self.models[value]

    def name_of(self, model: ModelSource | None) -> str | None:
        """Returns the short name of a model, if it has one."""
        return next((name for name, known in self.models.items() if known == model), None)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.resolve, handler(source))


FLUX_SCHNELL = HubModel(
    repo="black-forest-labs/FLUX.1-schnell",
    # The repository also holds every weight a second time, in single files of 24 GB.
    files=(
        "model_index.json",
        "scheduler/*",
        "text_encoder/*",
        "text_encoder_2/*",
        "tokenizer/*",
        "tokenizer_2/*",
        "transformer/*",
        "vae/*",
    ),
    licence="Apache-2.0",
    gated=True,
)
FLUX_KLEIN = HubModel(
    repo="black-forest-labs/FLUX.2-klein-4B",
    # The repository also holds the transformer a second time, in a single file of 7.75 GB.
    files=(
        "model_index.json",
        "scheduler/*",
        "text_encoder/*",
        "tokenizer/*",
        "transformer/*",
        "vae/*",
    ),
    licence="Apache-2.0",
    # Its files were read without a login; other sources speak of terms to accept. If the hub wants
    # that, the download says so.
    gated=False,
)
FLUX_NAMES = ShortNames({"klein": FLUX_KLEIN, "schnell": FLUX_SCHNELL})
ISNET = ReleaseModel(
    name="isnet-general-use",
    url="https://github.com/danielgatis/rembg/releases/download/v0.0.0/isnet-general-use.onnx",
    md5="fc16ebd8b0c10d971d3513d564d01e29",
    licence="Apache-2.0",
    page="https://github.com/xuebinqin/DIS",
)
BIREFNET = ReleaseModel(
    name="birefnet-general",
    url="https://github.com/danielgatis/rembg/releases/download/v0.0.0/BiRefNet-general-epoch_244.onnx",
    md5="7a35a0141cbbc80de11d9c9a28f52697",
    licence="MIT",
    page="https://github.com/ZhengPeng7/BiRefNet",
)
BIREFNET_LITE = ReleaseModel(
    name="birefnet-general-lite",
    url="https://github.com/danielgatis/rembg/releases/download/v0.0.0/BiRefNet-general-bb_swin_v1_tiny-epoch_232.onnx",
    md5="4fab47adc4ff364be1713e97b7e66334",
    licence="MIT",
    page="https://github.com/ZhengPeng7/BiRefNet",
)
CUTOUT_NAMES = ShortNames({"isnet": ISNET, "birefnet": BIREFNET, "birefnet_lite": BIREFNET_LITE})
TRIPOSR = HubModel(repo="stabilityai/TripoSR", files=("config.yaml", "model.ckpt"), licence="MIT")
FILE_LICENCES: Mapping[str, str] = {
    "diffusion_models/triposplat_fp16.safetensors": "MIT",
    "vae/triposplat_vae_decoder_fp16.safetensors": "MIT",
    "vae/flux2-vae.safetensors": "Apache-2.0",
    "clip_vision/dino_v3_vit_h.safetensors": "LicenseRef-DINOv3",
}
"""Files of TripoSplat, by their path in its repository, with the licence of each."""

TRIPOSPLAT = HubModel(
    repo="VAST-AI/TripoSplat",
    # The repository also holds a BiRefNet, which is not needed: we have our own cut-out.
    files=tuple(FILE_LICENCES),
    licence="MIT AND Apache-2.0 AND LicenseRef-DINOv3",
)
ZERO123 = HubModel(
    # By the author of DreamGaussian; its weights are in 16 bits.
    repo="ashawkey/zero123-xl-diffusers",
    # The repository also holds code, which is not needed: the classes are our own.
    files=(
        # Conversions have it in either of two formats.
        "clip_camera_projection/diffusion_pytorch_model.*",
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/*.safetensors",
        "vae/config.json",
        "vae/*.safetensors",
    ),
    # Its page says MIT. The weights that it was trained from are under the other one.
    licence="MIT AND LicenseRef-CreativeML-OpenRAIL-M",
)
QUALITY_SCORER = HubModel(
    repo="404-Gen/validation",
    files=("quality_scorer.safetensors",),
    licence="NOASSERTION",
)
CLIP_CONVNEXT = HubModel(
    repo="laion/CLIP-convnext_large_d.laion2B-s26B-b102K-augreg",
    files=("open_clip_model.safetensors",),
    licence="MIT",
)
ALEXNET = ReleaseModel(
    name="alexnet",
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    sha256_start="7be5be79",
    licence="BSD-3-Clause",
    page="https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.alexnet.html",
)
LLM2CLIP = HubModel(
    repo="microsoft/LLM2CLIP-Openai-L-14-336",
    files=("config.json", "configuration_clip.py", "modeling_clip.py", "model.safetensors"),
    licence="Apache-2.0",
)
