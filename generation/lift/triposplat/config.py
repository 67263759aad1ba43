"""The shapes and constants of a TripoSplat model, read from `config.json` as data only."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from generation.weights.checkpoint import CheckpointError
from generation.weights.sources import Frozen
from protocol.documents import DocumentError, read_json
from protocol.text import printable

CONFIG_NAME = "config.json"

# Several times what the public model has: a network is built before weights are compared.
Size = Annotated[int, Field(strict=True, ge=1, le=16_384)]
Positive = Annotated[float, Field(strict=True, gt=0)]

Attribute = Literal["_xyz", "_features_dc", "_scaling", "_rotation", "_opacity", "_offset_scale"]

VALUES_PER_GAUSSIAN: Mapping[Attribute, int] = {
    "_xyz": 3,
    "_features_dc": 3,
    "_scaling": 3,
    "_rotation": 4,
    "_opacity": 1,
    "_offset_scale": 1,
}
"""Columns of the Gaussian network's output, in order."""


def _take(content: Any, path: list[str]) -> Any:
    """Removes an entry of nested mappings, if it is there, and returns it."""
    *groups, key = path
    for group in groups:
        content = content.get(group) if isinstance(content, dict) else None
    return content.pop(key, None) if isinstance(content, dict) else None


def _first_problem(error: ValidationError) -> str:
    """Names the key, what was found and what was expected."""
    first = error.errors()[0]
    place = [printable(str(part), 80) for part in first["loc"]]
    message = first["msg"]
    if first["type"] == "value_error":  # Our own, which says all of it below its section.
        return ".".join([*place, message.removeprefix("Value error, ")])
    if first["type"] == "missing":
        return f"{'.'.join(place)} is missing"
    expected = message.removeprefix("Input should be ")
    if first["type"] == "extra_forbidden":
        expected = "no such key"
    found = printable(repr(first["input"]), 80)
    return f"{'.'.join(place) or 'the whole file'} is {found}, expected {expected}"


class Sections(BaseModel):
    """Sections of a `config.json`; others in it belong to other networks."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Reads the sections of a file.

        Raises:
            CheckpointError: The file is unreadable, or an entry is missing, unknown or not
                supported.
        """
        try:
            return cls.model_validate(read_json(file))
        except DocumentError as error:
            raise CheckpointError(str(error)) from error
        except ValidationError as error:
            raise CheckpointError(
                f"{file}: {_first_problem(error)}",
                fix="use the config that belongs to these weights",
            ) from error


class Sinusoid(Frozen):
    """How the level of a cell is embedded."""

    size: Annotated[Size, Field(multiple_of=2)] = 256
    """Entries: half of them cosines, half of them sines."""
    period: Positive = 1024.0
    """Of the slowest frequency, relative to the fastest."""


class TimeSinusoid(Sinusoid):
    """How a time is embedded."""

    period: Positive = 10_000.0
    factor: Positive = 1000.0
    """The largest time."""


class Positions(Frozen):
    """How a point in space is embedded."""

    octaves: Size = 10
    """Powers of two that the frequencies span."""


class TokenPositions(Positions):
    """How a token of the latent gets a point, and how that is embedded."""

    octaves: Size = 16
    """Whole powers of two among the frequencies; the rest lie between them."""
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] = 123
    """Of the Sobol sequence of the points."""


class Network(Frozen):
    """What the three networks have in common."""

    derived: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        "qk_norm": lambda _: True,
        "positions.frequencies_per_axis": lambda network: network.width // 6,
        "positions.unused_tail": lambda network: network.width % 6,
    }
    """What a file may state too: it follows from the settings, or is the same in every model."""

    width: Annotated[Size, Field(ge=8)]
    """C, channels of a token."""
    heads: Size
    """H, heads of attention."""
    head_dim: Size
    """d, channels of a head: C / H."""
    mlp_ratio: Size
    """Width of the feed-forward networks over C."""
    block_norm_eps: Positive = 1e-6
    final_norm_eps: Positive = 1e-5
    positions: Positions = Positions()

    @model_validator(mode="wrap")
    @classmethod
    def _agrees(cls, content: Any, make: Callable[[Any], Self]) -> Self:
        content = deepcopy(content)
        stated = {path: _take(content, path.split(".")) for path in cls.derived}
        network = make(content)
        for path, value in stated.items():
            if value is not None and value != (expected := cls.derived[path](network)):
                shown = printable(repr(value), 80)
                raise ValueError(f"{path} is {shown}, expected {expected!r}")
        if network.heads * network.head_dim != network.width or network.head_dim % 2:
            raise ValueError(
                f"head_dim is {network.head_dim}, expected an even number, {network.width} / "
                f"{network.heads}"
            )
        return network


class FlowConfig(Network):
    """The flow transformer."""

    derived: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        **Network.derived,
        "shared_adaln": lambda _: True,
        "block_shift_table": lambda _: True,
        "rotary_hidden": lambda network: network.rotary_hidden,
        "rotary_frequencies_per_axis": lambda network: network.rotary_frequencies,
        "positions.engine": lambda _: "torch.quasirandom.SobolEngine",
        "positions.dimension": lambda _: 3,
        "positions.scramble": lambda _: True,
    }

    latent_tokens: Annotated[int, Field(strict=True, ge=1, le=65_536)]
    latent_channels: Size
    camera_channels: Size
    refiner_blocks: Size
    """Blocks that latent and picture tokens pass apart."""
    joint_blocks: Size
    """Blocks that they pass together."""
    condition_channels_dino: Size
    condition_channels_vae: Size
    camera_mlp_layers: Size
    """Linear layers that the camera token passes."""
    rotary_max_frequency: Positive = 16.0
    """The largest of the learned frequencies before training."""
    rotary_norm_eps: Positive = 1e-5
    time_sinusoid: TimeSinusoid = TimeSinusoid()
    positions: TokenPositions = TokenPositions()

    @property
    def rotary_hidden(self) -> int:
        """Hidden channels of the network that places tokens."""
        return self.width // 8

    @property
    def rotary_frequencies(self) -> list[int]:
        """Frequencies per axis; together half the channels of a head."""
        share = self.head_dim // 6
        return [share, share, self.head_dim // 2 - 2 * share]


class OctreeConfig(Network):
    """The octree network."""

    derived: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        **Network.derived,
        "shared_adaln": lambda _: True,
        "outputs": lambda _: 8,
        "level_sinusoid.turn": lambda _: "2 pi",
        "level_sinusoid.input": lambda network: (
            f"resolution of the children, 2..{2**network.levels}"
        ),
    }

    blocks: Size
    context_channels: Size
    """Channels of the latent."""
    levels: Annotated[int, Field(strict=True, ge=1, le=10)]
    """The finest cells have a side of 2 ** -levels."""
    level_sinusoid: Sinusoid = Sinusoid()


class GaussianConfig(Network):
    """The Gaussian network."""

    derived: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        **Network.derived,
        "outputs": lambda network: network.outputs,
        "layout": lambda network: network.layout,
        "scale_activation": lambda _: "softplus",
        "box": lambda _: [-0.5, 0.5],
    }

    blocks: Size
    context_channels: Size
    """Channels of the latent."""
    gaussians_per_point: Size
    """n, Gaussians made of a point."""
    factors: Mapping[Attribute, Positive] = {
        "_xyz": 1.0,
        "_features_dc": 1.0,
        "_scaling": 1.0,
        "_opacity": 1.0,
        "_rotation": 0.1,
    }
    """Multiply the network's outputs; 1 where none is given."""
    perturbation_size: Positive = 1.5
    """Side of the box that offsets can reach, over their scale."""
    offset_scale: Positive = 0.05
    """Scale of the offsets where the network says 0."""
    scale_bias: Positive = 0.004
    """Scale of the Gaussians where the network says 0."""
    scale_floor: Positive = 0.0009
    """Added to the scale of a Gaussian, as the root of a sum of squares."""
    opacity_bias: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.1
    """Opacity where the network says 0."""

    @property
    def outputs(self) -> int:
        """Values that the network has for a point."""
        return sum(VALUES_PER_GAUSSIAN.values()) * self.gaussians_per_point

    @property
    def layout(self) -> dict[str, list[int]]:
        """First column of each attribute, and the one after its last."""
        layout: dict[str, list[int]] = {}
        first = 0
        for name, values in VALUES_PER_GAUSSIAN.items():
            layout[name] = [first, first + values * self.gaussians_per_point]
            first = layout[name][1]
        return layout


class TripoSplatConfig(Sections):
    """All three networks of a model. Their sections name every size.

    Constants, and what follows from the sizes, may be left out.
    """

    flow: FlowConfig
    octree: OctreeConfig
    gaussian: GaussianConfig

    @model_validator(mode="after")
    def _has_one_latent(self) -> Self:
        channels = self.flow.latent_channels
        for name, found in (
            ("octree", self.octree.context_channels),
            ("gaussian", self.gaussian.context_channels),
        ):
            if found != channels:
                raise ValueError(
                    f"{name}.context_channels is {found}, expected {channels}, which "
                    "flow.latent_channels is"
                )
        return self

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of `config.json`."""
        return self.model_dump(mode="json")


PUBLIC = TripoSplatConfig(
    flow=FlowConfig(
        latent_tokens=8192,
        latent_channels=16,
        camera_channels=5,
        width=1024,
        heads=16,
        head_dim=64,
        mlp_ratio=4,
        refiner_blocks=2,
        joint_blocks=24,
        condition_channels_dino=1280,
        condition_channels_vae=128,
        camera_mlp_layers=2,
    ),
    octree=OctreeConfig(
        width=1024, heads=16, head_dim=64, mlp_ratio=4, blocks=4, context_channels=16, levels=8
    ),
    gaussian=GaussianConfig(
        width=1024,
        heads=16,
        head_dim=64,
        mlp_ratio=4,
        blocks=16,
        context_channels=16,
        gaussians_per_point=32,
    ),
)
"""The model of VAST-AI/TripoSplat, which has no config file."""
