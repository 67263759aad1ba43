"""The image tokenizer: a DINO vision transformer (Dosovitskiy et al. 2021, Caron et al. 2021).

Attribute names are the checkpoint's keys, which follow the `ViTModel` of the transformers library.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generation.lift.triposr.attention import multi_head_attention
from generation.lift.triposr.config import ViTConfig

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class ImageTokenizer(nn.Module):
    """Turns an image into tokens."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.model = ViT(config)

    def forward(self, images: Tensor) -> Tensor:
        """Encodes images.

        Args:
            images: (B, 3, H, W) float32 RGB in 0..1; H and W are multiples of the patch size.

        Returns:
            (B, 1 + H/patch * W/patch, hidden), in the model's dtype; token 0 is CLS.
        """
        # Channel by channel, so that the constants need no transfer to the images' device.
        channels = zip(images.unbind(1), IMAGE_MEAN, IMAGE_STD, strict=True)
        normalised = torch.stack([(channel - mean) / std for channel, mean, std in channels], dim=1)
        tokens: Tensor = self.model(normalised.to(self.model.embeddings.cls_token.dtype))
        return tokens


class ViT(nn.Module):
    """Vision transformer; returns the last hidden state after the final layer norm."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        # In the checkpoint, but no output of TripoSR depends on it.
        self.pooler = Dense(config.hidden_size, config.hidden_size)

    def forward(self, images: Tensor) -> Tensor:
        """Maps normalised images (B, 3, H, W) to tokens (B, N, hidden)."""
        hidden = self.embeddings(images)
        for layer in self.encoder.layer:
            hidden = layer(hidden)
        normed: Tensor = self.layernorm(hidden)
        return normed


class Embeddings(nn.Module):
    """Patches, CLS token and position table."""

    fitted_positions: Tensor | None

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        grid = config.image_size // config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + grid**2, config.hidden_size))
        self.patch_embeddings = PatchProjection(config.hidden_size, config.patch_size)
        self.fitted_grid: tuple[int, int] | None = None
        self.register_buffer("fitted_positions", None, persistent=False)

    def fit_positions(self, rows: int, columns: int) -> None:
        """Resamples the position table for one size of images now, and not in every pass.

        Call it once the weights have their values, and again if these change.

        Args:
            rows: Rows of patches.
            columns: Columns of patches.
        """
        self.fitted_grid = (rows, columns)
        # Detached: a parameter, the table itself if it fits, would count as a weight here.
        table = self.position_embeddings.detach()
        self.fitted_positions = interpolate_positions(table, rows, columns)

    def forward(self, images: Tensor) -> Tensor:
        """Maps normalised images (B, 3, H, W) to tokens (B, N, hidden)."""
        patches = self.patch_embeddings.projection(images)
        rows, columns = patches.shape[-2:]
        cls = self.cls_token.expand(len(images), -1, -1)
        tokens = torch.cat([cls, patches.flatten(2).transpose(1, 2)], dim=1)
        if self.fitted_positions is not None and self.fitted_grid == (rows, columns):
            return tokens + self.fitted_positions
        return tokens + interpolate_positions(self.position_embeddings, rows, columns)


class PatchProjection(nn.Module):
    """One token per square patch."""

    def __init__(self, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, hidden_size, kernel_size=patch_size, stride=patch_size)


def interpolate_positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """Fits a square position table to another grid, as transformers did when TripoSR was trained.

    The factor between output and input coordinates is (target + 0.1) / source. Releases since
    4.45 use target / source, which moves the scene code of the trained weights.

    Args:
        table: (1, 1 + source * source, D), CLS first.
        rows: Target rows.
        columns: Target columns.

    Returns:
        (1, 1 + rows * columns, D), in the table's dtype.
    """
    cls, patches = table[:, :1], table[:, 1:]
    source = round(patches.shape[1] ** 0.5)
    if (rows, columns) == (source, source):
        return table
    grid = torch.unflatten(patches, 1, (source, source)).permute(0, 3, 1, 2)
    fitted = F.interpolate(
        grid.float(),
        scale_factor=((rows + 0.1) / source, (columns + 0.1) / source),
        mode="bicubic",
        align_corners=False,
    )
    return torch.cat([cls, fitted.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer: self-attention, then a feed-forward network with exact GELU."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention = AttentionBlock(width, config.num_attention_heads)
        self.intermediate = Dense(width, config.intermediate_size)
        self.output = Dense(config.intermediate_size, width)
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (B, N, hidden) to (B, N, hidden)."""
        attended = self.attention.attention(self.layernorm_before(hidden))
        hidden = hidden + self.attention.output.dense(attended)
        inner = F.gelu(self.intermediate.dense(self.layernorm_after(hidden)))
        out: Tensor = hidden + self.output.dense(inner)
        return out


class AttentionBlock(nn.Module):
    """Self-attention and its output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.output = Dense(width, width)


class SelfAttention(nn.Module):
    """Multi-head self-attention, with biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (B, N, width) to (B, N, width)."""
        return multi_head_attention(
            self.query(hidden), self.key(hidden), self.value(hidden), self.heads
        )


class Dense(nn.Module):
    """A linear layer under the name `dense`."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width_out)
