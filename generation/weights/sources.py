"""Where downloaded weights come from: repositories and releases, with licences."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value: fields cannot be set, unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HubModel(Frozen):
    """Weights in a Hugging Face repository.

    Attributes:
        repo: Repository id, owner/name.
        files: Glob patterns of the files that are needed; nothing else is downloaded.
        licence: Licence of the weights, as an SPDX identifier.
        gated: Whether the repository asks its users to accept its terms first.
    """

    repo: str
    files: tuple[str, ...]
    licence: str
    gated: bool = False

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
    """Weights in one file at a fixed address.

    Attributes:
        name: What rembg, messages and the lock file call it.
        url: Where the file is downloaded from; its last part is the file's name.
        md5: MD5 of the file as its publisher states it, in hexadecimal.
        licence: Licence of the weights, as an SPDX identifier.
        page: Where a person reads about it.
    """

    name: str
    url: str
    md5: str
    licence: str
    page: str

    @property
    def folder(self) -> str:
        """Name of its folder below the models folder."""
        return self.name

    @property
    def file(self) -> str:
        """Name of its only file."""
        return self.url.rsplit("/", 1)[-1]


ModelSource = HubModel | ReleaseModel


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
ISNET = ReleaseModel(
    name="isnet-general-use",
    url="https://github.com/danielgatis/rembg/releases/download/v0.0.0/isnet-general-use.onnx",
    md5="fc16ebd8b0c10d971d3513d564d01e29",
    licence="Apache-2.0",
    page="https://github.com/xuebinqin/DIS",
)
TRIPOSR = HubModel(repo="stabilityai/TripoSR", files=("config.yaml", "model.ckpt"), licence="MIT")
