"""The shapes of a TripoSR model, read from `config.yaml` and `dino_config.json` as data only."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from generation.weights.checkpoint import CheckpointError
from protocol.documents import DocumentError, read_json, read_yaml
from protocol.text import printable

CONFIG_NAME = "config.yaml"
VIT_CONFIG_NAME = "dino_config.json"

# Where each setting stands in config.yaml. Everything else in that file follows from these.
_SETTING_PATHS = {
    "image_size": "cond_image_size",
    "plane_size": "tokenizer.plane_size",
    "num_channels": "tokenizer.num_channels",
    "num_attention_heads": "backbone.num_attention_heads",
    "attention_head_dim": "backbone.attention_head_dim",
    "num_layers": "backbone.num_layers",
    "plane_channels": "post_processor.out_channels",
    "decoder_neurons": "decoder.n_neurons",
    "decoder_hidden_layers": "decoder.n_hidden_layers",
    "radius": "renderer.radius",
    "density_bias": "renderer.density_bias",
    "num_samples_per_ray": "renderer.num_samples_per_ray",
}

_LARGEST = {
    "image_size": 4096,
    "patch_size": 256,
    "plane_size": 256,
    "num_channels": 8192,
    "hidden_size": 8192,
    "intermediate_size": 32768,
    "num_attention_heads": 256,
    "attention_head_dim": 512,
    "num_layers": 128,
    "num_hidden_layers": 128,
    "plane_channels": 1024,
    "decoder_neurons": 4096,
    "decoder_hidden_layers": 128,
    "num_samples_per_ray": 4096,
}
"""Several times what published models have: the network is built before weights are compared."""

_VIT_CONSTANTS: dict[str, Any] = {
    "model_type": "vit",
    "hidden_act": "gelu",
    "num_channels": 3,
    "qkv_bias": True,
}


@dataclass(frozen=True)
class ViTConfig:
    """Shape of the image tokenizer (defaults: ViT-B/16, facebook/dino-vitb16).

    Attributes:
        hidden_size: Width of a token.
        num_hidden_layers: Number of transformer layers.
        num_attention_heads: Heads per layer; divides hidden_size.
        intermediate_size: Width of the feed-forward layer.
        image_size: Pixels per side that the position table was trained for.
        patch_size: Pixels per side of one patch.
        layer_norm_eps: Epsilon of every layer norm.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    image_size: int = 224
    patch_size: int = 16
    layer_norm_eps: float = 1e-12

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of `dino_config.json`."""
        settings = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return _VIT_CONSTANTS | settings


@dataclass(frozen=True)
class TripoSRConfig:
    """Shape and constants of a TripoSR model (defaults: the public stabilityai/TripoSR).

    Attributes:
        image_size: Pixels per side of the input image.
        plane_size: Tokens per side of one plane; the scene code is twice as fine.
        num_channels: Channels of a triplane token, a multiple of 32.
        num_attention_heads: Heads of the backbone's attention.
        attention_head_dim: Channels of one head.
        num_layers: Transformer blocks of the backbone.
        plane_channels: Channels C of the scene code.
        decoder_neurons: Width of the decoder's hidden layers.
        decoder_hidden_layers: Number of the decoder's hidden layers, at least 1.
        radius: Half the side of the modelled cube, in world units.
        density_bias: Added to the raw density before the exponential.
        num_samples_per_ray: Samples of the volume render.
        vit: Shape of the image tokenizer.
    """

    image_size: int = 512
    plane_size: int = 32
    num_channels: int = 1024
    num_attention_heads: int = 16
    attention_head_dim: int = 64
    num_layers: int = 16
    plane_channels: int = 40
    decoder_neurons: int = 64
    decoder_hidden_layers: int = 9
    radius: float = 0.87
    density_bias: float = -1.0
    num_samples_per_ray: int = 128
    vit: ViTConfig = field(default_factory=ViTConfig)

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of `config.yaml`."""
        return {
            "cond_image_size": self.image_size,
            "image_tokenizer_cls": "tsr.models.tokenizers.image.DINOSingleImageTokenizer",
            "image_tokenizer": {"pretrained_model_name_or_path": "facebook/dino-vitb16"},
            "tokenizer_cls": "tsr.models.tokenizers.triplane.Triplane1DTokenizer",
            "tokenizer": {"plane_size": self.plane_size, "num_channels": self.num_channels},
            "backbone_cls": "tsr.models.transformer.transformer_1d.Transformer1D",
            "backbone": {
                "in_channels": self.num_channels,
                "num_attention_heads": self.num_attention_heads,
                "attention_head_dim": self.attention_head_dim,
                "num_layers": self.num_layers,
                "cross_attention_dim": self.vit.hidden_size,
            },
            "post_processor_cls": "tsr.models.network_utils.TriplaneUpsampleNetwork",
            "post_processor": {
                "in_channels": self.num_channels,
                "out_channels": self.plane_channels,
            },
            "decoder_cls": "tsr.models.network_utils.NeRFMLP",
            "decoder": {
                "in_channels": 3 * self.plane_channels,
                "n_neurons": self.decoder_neurons,
                "n_hidden_layers": self.decoder_hidden_layers,
                "activation": "silu",
            },
            "renderer_cls": "tsr.models.nerf_renderer.TriplaneNeRFRenderer",
            "renderer": {
                "radius": self.radius,
                "feature_reduction": "concat",
                "density_activation": "exp",
                "density_bias": self.density_bias,
                "num_samples_per_ray": self.num_samples_per_ray,
            },
        }

    @classmethod
    def load(cls, config_file: Path, vit_file: Path | None = None) -> "TripoSRConfig":
        """Reads a config; class names in it are compared, never imported.

        Args:
            config_file: A `config.yaml` in the public layout.
            vit_file: A `dino_config.json`; without it the image tokenizer is ViT-B/16.

        Raises:
            CheckpointError: A file is unreadable, or an entry is missing, unknown or not supported.
        """
        vit = ViTConfig() if vit_file is None else _load_vit(vit_file)
        found = dict(_flatten(_parse(config_file, read_yaml)))
        config = cls(**_settings(config_file, cls, found, _SETTING_PATHS), vit=vit)
        # The file may say only what this config would write: one comparison covers class names,
        # unsupported options, unknown keys and widths that do not fit together.
        expected = dict(_flatten(config.as_dict()))
        for key in [*expected, *found]:
            _require_equal(config_file, key, found, expected)
        if config.num_channels % 32:
            raise _bad(config_file, "tokenizer.num_channels", config.num_channels, "n x 32")
        return config


def _load_vit(file: Path) -> ViTConfig:
    found = _parse(file, read_json)
    config = ViTConfig(
        **_settings(file, ViTConfig, found, {entry.name: entry.name for entry in fields(ViTConfig)})
    )
    for key in _VIT_CONSTANTS:
        _require_equal(file, key, found, _VIT_CONSTANTS)
    if config.hidden_size % config.num_attention_heads:
        heads = f"a divisor of hidden_size {config.hidden_size}"
        raise _bad(file, "num_attention_heads", config.num_attention_heads, heads)
    return config


def _parse(file: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    try:
        content = read(file)
    except DocumentError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds {type(content).__name__}, expected a mapping")
    return content


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _settings(
    file: Path, cls: type[Any], found: Mapping[str, Any], paths: Mapping[str, str]
) -> dict[str, Any]:
    """Reads the numbers of a config class, checking that each is there and of the right type."""
    types = {entry.name: entry.type for entry in fields(cls)}
    settings: dict[str, Any] = {}
    for name, path in paths.items():
        value = found.get(path)
        if types[name] is int:
            if type(value) is not int or not 1 <= value <= _LARGEST[name]:
                raise _bad(file, path, value, f"a positive integer up to {_LARGEST[name]}")
            settings[name] = value
        else:
            number = _as_float(value)
            if number is None:
                raise _bad(file, path, value, "a number that is finite")
            settings[name] = number
    return settings


def _as_float(value: Any) -> float | None:
    # YAML 1.1 reads 1e-12 (no dot) as text.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _require_equal(
    file: Path, key: str, found: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    if key not in expected:
        raise _bad(file, key, found[key], "no such key")
    value = found.get(key)
    if isinstance(expected[key], float):
        value = _as_float(value)
    if value != expected[key]:
        raise _bad(file, key, value, repr(expected[key]))


def _bad(file: Path, key: str, found: Any, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{file}: {printable(key, 80)} is {printable(repr(found), 80)}, expected {expected}"
    )
