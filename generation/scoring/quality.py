"""Image quality as a validator judges it: DINOv2-small with a head of one logit.

Attribute names are the checkpoint's keys, which follow the `Dinov2Model` of the transformers
library before it renamed them. That class itself is not used, because its names, and with them a
strict load, depend on the release.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generation.lift.triposr.vit import AttentionBlock, PatchProjection, interpolate_positions
from generation.scoring.checkpoints import fill, read_weights


@dataclass(frozen=True)
class QualityConfig:
    """Shape of the network; the defaults are those of the validator's (DINOv2-small).

    Attributes:
        hidden_size: Width of a token.
        num_hidden_layers: Layers.
        num_attention_heads: Heads of each.
        patch_size: Pixels along a side of a patch.
        image_size: Side of the pictures, in pixels; a multiple of the patch's.
        embedding_size: Width of a second head, which the score does without.
    """

    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    patch_size: int = 14
    image_size: int = 518
    embedding_size: int = 256


class QualityNetwork(nn.Module):
    """DINOv2 (Oquab et al. 2023), from whose class token one linear layer reads a quality."""

    def __init__(self, config: QualityConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        self.backbone = DinoV2(config)
        # In the checkpoint, but the score does not depend on it.
        self.emb_head = nn.Linear(config.hidden_size, config.embedding_size)
        self.score_head = nn.Linear(config.hidden_size, 1)

    def features(self, pictures: Tensor) -> Tensor:
        """Maps pictures of `pixels.for_quality`, (B, 3, H, W), to class tokens (B, hidden)."""
        tokens: Tensor = self.backbone(pictures)
        return tokens[:, 0]

    def logits(self, features: Tensor) -> Tensor:
        """Maps class tokens (B, hidden) to logits (B,), whose sigmoid is the quality, 0..1."""
        logits: Tensor = self.score_head(features)
        return logits[:, 0]

    def hold_products_in(self, dtype: torch.dtype) -> None:
        """Converts the weights of the backbone's products, for use under autocast of that type.

        Norms, scales, tokens, positions and the head stay float32.
        """
        for module in self.backbone.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(dtype)

    @classmethod
    def load(cls, file: Path, config: QualityConfig) -> "QualityNetwork":
        """Loads a safetensors file onto the CPU; every key must be there, and no other.

        Raises:
            SetupError: The file is damaged or of another network.
        """
        with torch.device("meta"):
            network = cls(config)
        fill(network, file, read_weights(file))
        return network


class DinoV2(nn.Module):
    """Vision transformer; returns the last hidden state after the final layer norm."""

    def __init__(self, config: QualityConfig) -> None:
        super().__init__()
        self.embeddings = DinoV2Embeddings(config)
        self.encoder = DinoV2Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=1e-6)

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps normalised pictures (B, 3, H, W) to tokens (B, N, hidden); the first is CLS."""
        hidden = self.embeddings(pictures)
        for layer in self.encoder.layer:
            hidden = layer(hidden)
        normed: Tensor = self.layernorm(hidden)
        return normed


class DinoV2Embeddings(nn.Module):
    """Patches, CLS token and position table."""

    def __init__(self, config: QualityConfig) -> None:
        super().__init__()
        tokens = 1 + (config.image_size // config.patch_size) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        # In the checkpoint; only training masks patches.
        self.mask_token = nn.Parameter(torch.zeros(1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, config.hidden_size))
        self.patch_embeddings = PatchProjection(config.hidden_size, config.patch_size)

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps normalised pictures (B, 3, H, W) to tokens (B, N, hidden)."""
        patches = self.patch_embeddings.projection(pictures)
        positions = interpolate_positions(self.position_embeddings, *patches.shape[-2:])
        cls = self.cls_token.expand(len(pictures), -1, -1)
        return torch.cat([cls, patches.flatten(2).transpose(1, 2).to(cls.dtype)], dim=1) + positions


class DinoV2Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: QualityConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(DinoV2Layer(config) for _ in range(config.num_hidden_layers))


class DinoV2Layer(nn.Module):
    """Pre-norm transformer layer whose two branches are scaled channel by channel."""

    def __init__(self, config: QualityConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = AttentionBlock(width, config.num_attention_heads)
        self.layer_scale1 = DinoV2Scale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = DinoV2Mlp(width)
        self.layer_scale2 = DinoV2Scale(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (B, N, hidden) to (B, N, hidden)."""
        attended = self.attention.output.dense(self.attention.attention(self.norm1(hidden)))
        hidden = hidden + self.layer_scale1(attended)
        out: Tensor = hidden + self.layer_scale2(self.mlp(self.norm2(hidden)))
        return out


class DinoV2Scale(nn.Module):
    """One factor a channel (Touvron et al. 2021, "LayerScale")."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (..., width) to the same shape."""
        return hidden * self.lambda1


class DinoV2Mlp(nn.Module):
    """Two linear layers with exact GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (..., width) to the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(hidden)))
        return out
