"""Sampling a latent: Euler steps along the flow, which can be interrupted between any two."""

from dataclasses import dataclass

import torch
from torch import Tensor

from generation.lift.triposplat.flow import FlowTransformer


@dataclass(frozen=True, eq=False)
class SamplerState:
    """The state of a run between two steps.

    Attributes:
        latent: (B, L, latent channels) float32.
        camera: (B, 1, camera channels) float32.
        index: Steps done.
        velocity: Of the latent in the last step; None before the first.
    """

    latent: Tensor
    camera: Tensor
    index: int
    velocity: Tensor | None = None


def times(steps: int, shift: float) -> list[float]:
    """Returns the steps + 1 times of a run, from 1 to 0.

    Args:
        steps: At least 1.
        shift: More than 1 spends more steps near 1, where the noise is.
    """
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    return [shift * u / (1 + (shift - 1) * u) for u in even]


class Sampler:
    """Denoises latents of one picture, or of a batch of B pictures.

    The picture's tokens are computed once, here. A state belongs to its caller and is never
    changed: it can be put aside between two steps, and stepped from again.

    Args:
        flow: The network.
        feature1: (B, M, DINO channels).
        feature2: (B, M, VAE channels).
        steps: Euler steps from noise to latent.
        guidance: Of classifier-free guidance (Ho and Salimans 2022); 1 or less saves the passes
            without condition.
        shift: See `times`.

    Raises:
        ValueError: There is no step.
    """

    @torch.inference_mode()
    def __init__(
        self,
        flow: FlowTransformer,
        feature1: Tensor,
        feature2: Tensor,
        *,
        steps: int = 20,
        guidance: float = 3.0,
        shift: float = 3.0,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps is {steps}, expected at least 1")
        self.times = times(steps, shift)
        self._flow, self._batch = flow, len(feature1)
        scaled = torch.tensor(
            [flow.config.time_sinusoid.factor * t for t in self.times], dtype=torch.float64
        )
        self._model_times = scaled.float().to(flow.device)
        features = feature1.to(flow.device), feature2.to(flow.device)
        self._conditions = [flow.condition(*features)]
        if guidance > 1:
            nothing = (torch.zeros_like(x[:1, :1]) for x in features)
            self._conditions.append(flow.condition(*nothing))
            self._conditions.append(torch.tensor(guidance, device=flow.device))

    @property
    def steps(self) -> int:
        """Steps from noise to latent."""
        return len(self.times) - 1

    def start(self, generator: torch.Generator) -> SamplerState:
        """Draws the noise that sampling starts from: first the latent's, then the camera's.

        Args:
            generator: On any device; one on the CPU gives the same noise everywhere.
        """
        flow, config = self._flow, self._flow.config
        latent, camera = (
            torch.randn(self._batch, *shape, generator=generator, device=generator.device)
            for shape in (
                (config.latent_tokens, config.latent_channels),
                (1, config.camera_channels),
            )
        )
        return SamplerState(latent.to(flow.device), camera.to(flow.device), 0)

    @torch.inference_mode()
    def velocities(self, state: SamplerState) -> tuple[Tensor, Tensor]:
        """Computes the guided velocities of latent and camera, float32, at a state's time."""
        time = self._model_times[state.index].expand(self._batch)
        return self._flow.velocities(state.latent, state.camera, time, *self._conditions)

    @torch.inference_mode()
    def step(self, state: SamplerState) -> SamplerState:
        """Takes one step.

        Args:
            state: Not changed.

        Raises:
            ValueError: The state has no step left.
        """
        if state.index >= self.steps:
            raise ValueError(f"all {self.steps} steps are done, no step is left to take")
        index = state.index + 1
        latent, camera = self.velocities(state)
        elapsed = self.times[state.index] - self.times[index]
        return SamplerState(
            state.latent - latent * elapsed, state.camera - camera * elapsed, index, latent
        )

    @torch.inference_mode()
    def finish(self, state: SamplerState) -> Tensor:
        """Returns the latent (B, L, latent channels) of a run, which may end before its last step.

        It goes straight on with the velocity of the step before, as far as there are steps left.

        Raises:
            ValueError: No step has been taken.
        """
        if state.velocity is None:
            raise ValueError("the state is still noise, take at least one step")
        return state.latent - state.velocity * self.times[state.index]

    def sample(self, generator: torch.Generator) -> Tensor:
        """Takes all steps from new noise; returns the latent (B, L, latent channels) float32."""
        state = self.start(generator)
        while state.index < self.steps:
            state = self.step(state)
        return self.finish(state)
