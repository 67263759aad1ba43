"""TripoSR (Tochilkin et al. 2024): one image to a field of density and colour."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from generation.lift.triposr import checkpoint, mesh
from generation.lift.triposr.chunking import map_in_chunks
from generation.lift.triposr.config import CONFIG_NAME, VIT_CONFIG_NAME, TripoSRConfig
from generation.lift.triposr.fused import FusedDecoder
from generation.lift.triposr.preprocess import image_to_tensor
from generation.lift.triposr.transformer import Backbone
from generation.lift.triposr.triplane import (
    Decoder,
    SceneCode,
    TriplaneTokens,
    TriplaneUpsample,
    grid_terms,
    point_features,
)
from generation.lift.triposr.vit import ImageTokenizer
from generation.weights.checkpoint import check_state_dict, read_state_dict

if TYPE_CHECKING:
    import trimesh

DENSITY_THRESHOLD = 25.0
"""Density of the surface in the public model's fields."""

QUERY_CHUNK = 262_144
_QUERY_FLOOR = 1024


class TripoSR(nn.Module):
    """The network; attribute names are the checkpoint's keys.

    Weights may be float32 or bfloat16. The planes are always read, and density and
    colour always activated, in float32. On a small model bfloat16 moves scene codes by under 2 %
    (relative to their norm).

    Args:
        config: Shapes and constants; the default is the public model's.
        query_chunk: Most points decoded at once, which bounds the memory of every query. Halved
            for the rest of a call when the GPU runs out of memory.

    Attributes:
        fused: A copy of the decoder in one kernel, if there is one; `field.SceneField` reads scenes
            with it.
    """

    def __init__(
        self, config: TripoSRConfig | None = None, *, query_chunk: int = QUERY_CHUNK
    ) -> None:
        super().__init__()
        self.config = config = config or TripoSRConfig()
        self.query_chunk = query_chunk
        self.fused: FusedDecoder | None = None
        self.image_tokenizer = ImageTokenizer(config.vit)
        self.tokenizer = TriplaneTokens(config)
        self.backbone = Backbone(config)
        self.post_processor = TriplaneUpsample(config)
        self.decoder = Decoder(config)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        query_chunk: int = QUERY_CHUNK,
    ) -> "TripoSR":
        """Loads a model, in eval mode and without gradients.

        Args:
            path_or_repo: A folder with `config.yaml` and `model.safetensors` or `model.ckpt`, or
                a hub id such as "stabilityai/TripoSR". The image tokenizer is ViT-B/16 unless
                there is a `dino_config.json`.
            revision: Branch, tag or commit on the hub.
            device: Where to put the weights.
            dtype: Floating-point type of the weights.
            query_chunk: See the class.

        Raises:
            CheckpointError: A file is absent, damaged, or does not fit the config.
        """
        files = checkpoint.locate(path_or_repo, revision)
        config = TripoSRConfig.load(files.config, files.vit_config)
        with torch.device("meta"):
            model = cls(config, query_chunk=query_chunk)
        state = read_state_dict(files.weights)
        check_state_dict(files.weights, state, model.state_dict(), config_name=files.config.name)
        state = {key: value.to(device, dtype) for key, value in state.items()}
        model.load_state_dict(state, strict=True, assign=True)
        model.fit_positions()
        return model.requires_grad_(False).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.yaml`, `dino_config.json` and `model.safetensors` into a folder."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = yaml.safe_dump(self.config.as_dict(), sort_keys=False)
        (folder / CONFIG_NAME).write_text(config, encoding="utf-8")
        vit_config = json.dumps(self.config.vit.as_dict(), indent=2)
        (folder / VIT_CONFIG_NAME).write_text(vit_config + "\n", encoding="utf-8")
        save_file(self.state_dict(), folder / checkpoint.WEIGHT_NAMES[0])

    @property
    def radius(self) -> float:
        """Half the side of the modelled cube, in world units."""
        return self.config.radius

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tokenizer.embeddings.device

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The transformer layers, of two kinds; nearly all of the work of `forward`."""
        return (*self.backbone.transformer_blocks, *self.image_tokenizer.model.encoder.layer)

    def fit_positions(self) -> None:
        """Resamples the image tokenizer's position table for the config's image size, once.

        Done when a checkpoint is loaded. It changes no result, but on an H100 the resampling is a
        third of the time of a pass. Call it again if the weights change.
        """
        side = self.config.image_size // self.config.vit.patch_size
        self.image_tokenizer.model.embeddings.fit_positions(side, side)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, 3, H, W), float32 RGB in 0..1, to scene codes (B, 3, C, 2 * S, 2 * S)."""
        image_tokens = self.image_tokenizer(images)
        tokens = self.backbone(self.tokenizer(len(images)), image_tokens)
        codes: Tensor = self.post_processor(tokens)
        return codes

    @torch.no_grad()
    def scene_codes(self, image: Image.Image | NDArray[np.generic] | Tensor) -> SceneCode:
        """Computes the scene code of one object.

        Args:
            image: A square picture of one object on grey: PIL, an array (H, W, 3) of uint8 or
                float in 0..1, or a tensor (H, W, 3) of uint8. Any size; resampled to the network's.

        Returns:
            (3, C, H, W) in the model's dtype.

        Raises:
            ValueError: The array's shape, kind of number or range is wrong.
        """
        codes: Tensor = self(image_to_tensor(image, self.config.image_size, self.device))
        return codes[0]

    @torch.no_grad()
    def query(self, points: Tensor, scene_code: SceneCode) -> tuple[Tensor, Tensor]:
        """Reads density and colour at points.

        Args:
            points: (N, 3) world x y z in (-radius, radius); features outside are zero.
            scene_code: (3, C, H, W).

        Returns:
            Density (N,), at least 0, and RGB (N, 3) in 0..1, both float32.

        Raises:
            ValueError: A shape is wrong.
            GenerationError: The GPU has no memory left even for small chunks.
        """
        raw = self.query_raw(points, scene_code)
        return torch.exp(raw[:, 0] + self.config.density_bias), torch.sigmoid(raw[:, 1:])

    @torch.no_grad()
    def query_raw(self, points: Tensor, scene_code: SceneCode) -> Tensor:
        """Reads what `query` activates: raw density, red, green and blue (N, 4), float32."""
        return self._decode(points, scene_code, self.decoder)

    def query_density(self, points: Tensor, scene_code: SceneCode) -> Tensor:
        """Reads density (N,) alone, as `query` does; differentiable in the points."""
        return torch.exp(self.query_log_density(points, scene_code))

    def query_log_density(self, points: Tensor, scene_code: SceneCode) -> Tensor:
        """Reads the natural logarithm of density (N,); differentiable in the points."""
        raw = self._decode(points, scene_code, self.decoder.density)
        return raw + self.config.density_bias

    @torch.no_grad()
    def density_grid(self, scene_code: SceneCode, resolution: int = 256) -> Tensor:
        """Reads density on a regular grid that spans the cube from face to face.

        Args:
            scene_code: (3, C, H, W).
            resolution: R, at least 2.

        Returns:
            (R, R, R) float32, index [x][y][z]; index i stands at radius * (2 * i / (R - 1) - 1).

        Raises:
            ValueError: A shape is wrong.
            GenerationError: The GPU has no memory left even for one slice.
        """
        return self.log_density_grid(scene_code, resolution).exp_()

    @torch.no_grad()
    def log_density_grid(self, scene_code: SceneCode, resolution: int) -> Tensor:
        """Reads the natural logarithm of what `density_grid` returns.

        On a grid the decoder's first layer splits into one small term per plane, which are added
        up here: each plane is read R * R times, not R * R * R times.
        """
        self._check_scene_code(scene_code)
        if resolution < 2:
            raise ValueError(f"resolution is {resolution}, expected at least 2")
        xy, xz, yz = grid_terms(self.decoder, scene_code.float(), resolution)

        def decode(start: int, stop: int) -> Tensor:
            hidden = xy[start:stop, :, None] + xz[start:stop, None]
            raw = self.decoder.density_after_first((hidden + yz).flatten(0, 2))
            return raw.float().view(-1, resolution, resolution) + self.config.density_bias

        slices = max(1, self.query_chunk // resolution**2)
        return map_in_chunks(decode, resolution, slices, floor=1)

    @torch.no_grad()
    def extract_mesh(
        self,
        scene_code: SceneCode,
        resolution: int = 256,
        threshold: float = DENSITY_THRESHOLD,
    ) -> "trimesh.Trimesh":
        """Extracts the surface as a mesh with vertex colours, in the model's frame (z up).

        Args:
            scene_code: (3, C, H, W).
            resolution: Grid points per side.
            threshold: Density of the surface.

        Raises:
            GenerationError: The field does not cross the threshold, or memory ran out.
        """
        density = self.density_grid(scene_code, resolution)
        vertices, faces = mesh.marching_cubes(density, threshold, self.radius)
        _, rgb = self.query(torch.from_numpy(vertices).to(self.device), scene_code)
        return mesh.coloured_mesh(vertices, faces, rgb)

    def _decode(
        self, points: Tensor, scene_code: SceneCode, decoder: Callable[[Tensor], Tensor]
    ) -> Tensor:
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"points have shape {tuple(points.shape)}, expected (N, 3)")
        self._check_scene_code(scene_code)
        planes = scene_code.float()
        dtype = self.tokenizer.embeddings.dtype
        if len(points) == 0:
            return decoder(planes.new_zeros(0, 3 * planes.shape[1], dtype=dtype)).float()

        def decode(start: int, stop: int) -> Tensor:
            features = point_features(planes, points[start:stop].float() / self.radius)
            return decoder(features.to(dtype)).float()

        return map_in_chunks(decode, len(points), self.query_chunk, _QUERY_FLOOR)

    def _check_scene_code(self, scene_code: SceneCode) -> None:
        size = 2 * self.config.plane_size
        expected = (3, self.config.plane_channels, size, size)
        if scene_code.shape != expected:
            raise ValueError(f"scene code has shape {tuple(scene_code.shape)}, expected {expected}")
