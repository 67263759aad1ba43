"""The shapes and constants of a TripoSplat model, read from `config.json` as data only."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from generation.lift.triposr.errors import CheckpointError
from protocol.documents import DocumentError, read_json
from protocol.text import printable

CONFIG_NAME = "config.json"

VALUES_PER_GAUSSIAN = {
    "_xyz": 3,
    "_features_dc": 3,
    "_scaling": 3,
    "_rotation": 4,
    "_opacity": 1,
    "_offset_scale": 1,
}
"""Columns of the Gaussian network's output, in order; each stands for all Gaussians of a point."""

_FIX = (
    "use the config that belongs to these weights (the public ones, VAST-AI/TripoSplat, need none)"
)

_LARGEST = {"latent_tokens": 65_536, "sobol_seed": 2**32, "levels": 10}
_LARGEST_OTHER = 16_384
"""Several times what the public model has: a network is built before weights are compared."""


def _at(path: str, default: Any) -> Any:
    """A constant: a file may leave it out, or has it at this place in its section."""
    return field(default=default, metadata={"path": path})


@dataclass(frozen=True)
class FlowConfig:
    """The flow transformer.

    Attributes:
        latent_tokens: L, tokens of the latent.
        latent_channels: Channels of the latent.
        camera_channels: Channels of the camera token.
        width: C, channels of a token in the network.
        heads: H, heads of attention.
        head_dim: d, channels of a head; C / H.
        mlp_ratio: Width of the feed-forward networks over C.
        refiner_blocks: Blocks that latent and picture tokens pass apart.
        joint_blocks: Blocks that they pass together.
        condition_channels_dino: Channels of DINOv3's tokens.
        condition_channels_vae: Channels of the VAE's tokens.
        camera_mlp_layers: Linear layers that the camera token passes.
        rotary_max_frequency: The largest of the learned frequencies before training.
        rotary_norm_eps: Epsilon of the norm before the rotary positions.
        block_norm_eps: Epsilon of the norms of a block.
        final_norm_eps: Epsilon of the last norm.
        time_size: Entries of the time's sinusoid.
        time_period: Of its slowest frequency.
        time_factor: Largest time that the network reads.
        sobol_seed: Of the points that the latent's tokens stand for.
        octaves: Whole powers of two among the frequencies of their table.
    """

    latent_tokens: int
    latent_channels: int
    camera_channels: int
    width: int
    heads: int
    head_dim: int
    mlp_ratio: int
    refiner_blocks: int
    joint_blocks: int
    condition_channels_dino: int
    condition_channels_vae: int
    camera_mlp_layers: int
    rotary_max_frequency: float = 16.0
    rotary_norm_eps: float = 1e-5
    block_norm_eps: float = 1e-6
    final_norm_eps: float = 1e-5
    time_size: int = _at("time_sinusoid.size", 256)
    time_period: float = _at("time_sinusoid.period", 10_000.0)
    time_factor: float = _at("time_sinusoid.factor", 1000.0)
    sobol_seed: int = _at("positions.seed", 123)
    octaves: int = _at("positions.octaves", 16)

    @property
    def rotary_hidden(self) -> int:
        """Hidden channels of the network that places tokens."""
        return self.width // 8

    @property
    def rotary_frequencies(self) -> tuple[int, int, int]:
        """Frequencies per axis; together half the channels of a head."""
        share = self.head_dim // 6
        return share, share, self.head_dim // 2 - 2 * share

    def _fixed(self) -> dict[str, Any]:
        return {
            "qk_norm": True,
            "shared_adaln": True,
            "block_shift_table": True,
            "rotary_hidden": self.rotary_hidden,
            "rotary_frequencies_per_axis": list(self.rotary_frequencies),
            "positions.engine": "torch.quasirandom.SobolEngine",
            "positions.dimension": 3,
            "positions.scramble": True,
            **_table(self.width),
        }


@dataclass(frozen=True)
class OctreeConfig:
    """The octree network; what `FlowConfig` has as well means the same.

    Attributes:
        blocks: Number of blocks.
        context_channels: Channels of the latent.
        levels: Levels of the octree; the finest cells have a side of 2 ** -levels.
        level_size: Entries of the level's sinusoid.
        level_period: Of its slowest frequency.
        octaves: Powers of two that the frequencies of the points' table span.
    """

    width: int
    heads: int
    head_dim: int
    mlp_ratio: int
    blocks: int
    context_channels: int
    levels: int
    block_norm_eps: float = 1e-6
    final_norm_eps: float = 1e-5
    level_size: int = _at("level_sinusoid.size", 256)
    level_period: float = _at("level_sinusoid.period", 1024.0)
    octaves: int = _at("positions.octaves", 10)

    def _fixed(self) -> dict[str, Any]:
        return {
            "outputs": 8,
            "qk_norm": True,
            "shared_adaln": True,
            "level_sinusoid.turn": "2 pi",
            "level_sinusoid.input": f"resolution of the children, 2..{2**self.levels}",
            **_table(self.width),
        }


@dataclass(frozen=True)
class GaussianConfig:
    """The Gaussian network; what the other two have as well means the same.

    Attributes:
        gaussians_per_point: n, Gaussians made of a point.
        rotation_factor: Multiplies the network's rotations before (1, 0, 0, 0) is added.
        perturbation_size: Side of the box that offsets can reach, over their scale.
        offset_scale: Scale of the offsets where the network says 0.
        scale_bias: Scale of the Gaussians where the network says 0.
        scale_floor: Added to scales, as the root of a sum of squares.
        opacity_bias: Opacity where the network says 0.
    """

    width: int
    heads: int
    head_dim: int
    mlp_ratio: int
    blocks: int
    context_channels: int
    gaussians_per_point: int
    block_norm_eps: float = 1e-6
    final_norm_eps: float = 1e-5
    octaves: int = _at("positions.octaves", 10)
    rotation_factor: float = _at("factors._rotation", 0.1)
    perturbation_size: float = 1.5
    offset_scale: float = 0.05
    scale_bias: float = 0.004
    scale_floor: float = 0.0009
    opacity_bias: float = 0.1

    @property
    def outputs(self) -> int:
        """Values that the network has for a point."""
        return sum(VALUES_PER_GAUSSIAN.values()) * self.gaussians_per_point

    def _fixed(self) -> dict[str, Any]:
        layout: dict[str, Any] = {}
        first = 0
        for name, values in VALUES_PER_GAUSSIAN.items():
            layout[f"layout.{name}"] = [first, first := first + values * self.gaussians_per_point]
        unscaled = ("_xyz", "_features_dc", "_scaling", "_opacity")
        return {
            "outputs": self.outputs,
            "qk_norm": True,
            "scale_activation": "softplus",
            "box": [-0.5, 0.5],
            **layout,
            **{f"factors.{name}": 1.0 for name in unscaled},
            **_table(self.width),
        }


@dataclass(frozen=True)
class TripoSplatConfig:
    """All three networks of a model."""

    flow: FlowConfig
    octree: OctreeConfig
    gaussian: GaussianConfig

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of `config.json`."""
        content: dict[str, Any] = {}
        for name in ("flow", "octree", "gaussian"):
            section = getattr(self, name)
            for entry in fields(section):
                *groups, key = (name, *_path(entry).split("."))
                place = content
                for group in groups:
                    place = place.setdefault(group, {})
                place[key] = getattr(section, entry.name)
        return content

    @classmethod
    def load(cls, file: Path) -> "TripoSplatConfig":
        """Reads a config, whose sections are `flow`, `octree` and `gaussian`.

        A section names every size. Constants, and what follows from the sizes, may be left out.
        Other sections belong to other networks and are not looked at.

        Args:
            file: JSON.

        Raises:
            CheckpointError: The file is unreadable, or an entry is missing, unknown or not
                supported.
        """
        try:
            content = read_json(file)
        except DocumentError as error:
            raise CheckpointError(str(error), fix=_FIX) from error
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{file} holds {type(content).__name__}, expected a mapping", fix=_FIX
            )
        config = cls(
            flow=_section(file, content, "flow", FlowConfig),
            octree=_section(file, content, "octree", OctreeConfig),
            gaussian=_section(file, content, "gaussian", GaussianConfig),
        )
        channels = config.flow.latent_channels
        for name, section in (("octree", config.octree), ("gaussian", config.gaussian)):
            if section.context_channels != channels:
                key = f"{name}.context_channels"
                wanted = f"{channels}, which flow.latent_channels is"
                raise _bad(file, key, section.context_channels, wanted)
        return config


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
        width=1024,
        heads=16,
        head_dim=64,
        mlp_ratio=4,
        blocks=4,
        context_channels=16,
        levels=8,
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

_Section = TypeVar("_Section", FlowConfig, OctreeConfig, GaussianConfig)


def _section(file: Path, content: Mapping[str, Any], name: str, cls: type[_Section]) -> _Section:
    section = content.get(name)
    if not isinstance(section, dict):
        raise _bad(file, name, section, "a mapping")
    found = dict(_flatten(section))
    settings: dict[str, Any] = {}
    for entry in fields(cls):
        key = _path(entry)
        if key in found or entry.default is MISSING:
            whole = entry.type is int
            settings[entry.name] = _number(file, f"{name}.{key}", found.pop(key, None), whole)
    config = cls(**settings)
    if config.heads * config.head_dim != config.width:
        wanted = f"{config.width} / {config.heads}, width over heads"
        raise _bad(file, f"{name}.head_dim", config.head_dim, wanted)
    if config.head_dim % 2:
        raise _bad(file, f"{name}.head_dim", config.head_dim, "an even number")
    fixed = config._fixed()
    for key, value in found.items():
        if key not in fixed:
            raise _bad(file, f"{name}.{key}", value, "no such key")
        if value != fixed[key]:
            raise _bad(file, f"{name}.{key}", value, repr(fixed[key]))
    return config


def _number(file: Path, key: str, value: Any, whole: bool) -> int | float:
    largest = _LARGEST.get(key.rpartition(".")[2], _LARGEST_OTHER)
    if key == "flow.positions.seed":
        largest = _LARGEST["sobol_seed"]
    if whole:
        if type(value) is not int or not 1 <= value <= largest:
            raise _bad(file, key, value, f"a positive integer up to {largest}")
        return value
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise _bad(file, key, value, "a positive number")
    return float(value)


def _table(width: int) -> dict[str, Any]:
    """What a position table's width leads to."""
    return {
        "positions.frequencies_per_axis": width // 6,
        "positions.unused_tail": width % 6,
    }


def _path(entry: Any) -> str:
    path: str = entry.metadata.get("path", entry.name)
    return path


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _bad(file: Path, key: str, found: Any, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{file}: {printable(key, 80)} is {printable(repr(found), 80)}, expected {expected}",
        fix=_FIX,
    )
