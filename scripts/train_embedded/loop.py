"""The training loop that all networks share: seeded by step, resumable, averaged, logged."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from scripts.train_embedded.files import write_atomically

_LOG_EVERY = 20
_SAVE_EVERY_S = 15.0

Tensors = tuple[Tensor, ...] | list[Tensor]

Step = Callable[[torch.Generator], Mapping[str, Tensor]]
"""Draws a batch from the generator and returns named losses, the first of which is minimised."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast a network learns.

    Attributes:
        steps: Optimiser steps.
        batch: Samples per step.
        rate: Peak learning rate, after a short warm-up; it then falls along a cosine.
        minutes: Wall-clock limit. A machine too slow for `steps` in this time anneals sooner.
        decay: Weight decay of AdamW.
        average: Decay of the moving average of the weights, which is what is exported; it starts
            lower, so that the average never reaches back to before most of the run.
        seed: Every step draws from seed + step, so that a resumed run repeats what was lost.
    """

    steps: int
    batch: int
    rate: float
    minutes: float = math.inf
    decay: float = 0.01
    average: float = 0.998
    seed: int = 17


class Training:
    """One network's training.

    Args:
        name: Names the checkpoint, the losses and the progress bar.
        module: Everything that is trained, on its device.
        plan: How long and how fast.
        folder: Where `name.pt` and `name.losses.jsonl` are kept.
        row: Row of the progress bar.
    """

    def __init__(
        self, name: str, module: nn.Module, plan: Plan, folder: Path, row: int = 0
    ) -> None:
        self.name, self.plan, self.folder, self.row = name, plan, folder, row
        self.module = module
        self.device = next(module.parameters()).device
        self.averaged = AveragedModel(module, multi_avg_fn=self._average, use_buffers=True)
        self.optimiser = torch.optim.AdamW(
            module.parameters(),
            lr=plan.rate,
            weight_decay=plan.decay,
            betas=(0.9, 0.99),
            fused=self.device.type == "cuda",
        )
        self.step, self.elapsed = 0, 0.0
        self.losses: list[dict[str, float]] = []
        self._resume()

    @property
    def progress(self) -> float:
        """Share of the plan that is done, 0..1."""
        return min(1.0, max(self.step / self.plan.steps, self.elapsed / 60 / self.plan.minutes))

    def run(self, step: Step) -> nn.Module:
        """Trains until the plan is done and returns the averaged network in eval mode."""
        self.module.train()
        generator = torch.Generator(self.device)
        bar = tqdm(total=self.plan.steps, initial=self.step, desc=self.name, position=self.row)
        mark = saved = time.monotonic()
        while self.progress < 1:
            generator.manual_seed(self.plan.seed + self.step)
            losses = step(generator)
            self._descend(next(iter(losses.values())))
            self.step += 1
            if self.step % _LOG_EVERY == 0 or self.step == self.plan.steps:
                self._log(losses, bar)
                now = time.monotonic()
                self.elapsed += now - mark
                mark = now
                if now - saved > _SAVE_EVERY_S:
                    self.save()
                    saved = now
        bar.close()
        self.save()
        network: nn.Module = self.averaged.module
        return network.eval().requires_grad_(False)

    def save(self) -> None:
        """Writes the checkpoint and the losses so far."""
        state = {
            "module": self.module.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
            "losses": self.losses,
        }
        write_atomically(self._checkpoint, lambda draft: torch.save(state, draft))
        lines = "".join(json.dumps(entry) + "\n" for entry in self.losses)
        write_atomically(self._log_file, lambda draft: draft.write_text(lines, encoding="utf-8"))

    @property
    def _checkpoint(self) -> Path:
        return self.folder / f"{self.name}.pt"

    @property
    def _log_file(self) -> Path:
        return self.folder / f"{self.name}.losses.jsonl"

    def _resume(self) -> None:
        if not self._checkpoint.is_file():
            return
        state: dict[str, Any] = torch.load(
            self._checkpoint, map_location=self.device, weights_only=True
        )
        self.module.load_state_dict(state["module"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.losses = state["losses"]

    @torch.no_grad()
    def _average(self, averaged: Tensors, current: Tensors, _: object) -> None:
        # Without the second bound, a short run would export an average of its early mistakes.
        keep = min(self.plan.average, (1 + self.step) / (10 + self.step))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - keep)
        else:
            torch._foreach_copy_(averaged, current)

    def _descend(self, loss: Tensor) -> None:
        warm = min(1.0, (self.step + 1) / min(300, 0.1 * self.plan.steps + 1))
        rate = self.plan.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.progress)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward([loss])
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimiser.step()
        self.averaged.update_parameters(self.module)

    def _log(self, losses: Mapping[str, Tensor], bar: "tqdm[Any]") -> None:
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise FloatingPointError(f"{self.name}: step {self.step} has losses {values}")
        self.losses.append({"step": self.step, "minutes": self.elapsed / 60, **values})
        bar.set_postfix({name: f"{value:.4f}" for name, value in values.items()})
        bar.update(self.step - bar.n)
