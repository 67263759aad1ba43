"""What an engine returns of a task. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from generation.scoring.score import Score
from generation.scoring.validity import ValidityReport
from generation.stage import Asset, Cutout, TriangleMesh
from protocol.gaussians import GaussianCloud


@dataclass(frozen=True, eq=False)
class Generation:
    """What became of a task.

    Attributes:
        task_id: Id of the task.
        rung: Name of the quality level.
        made: The Gaussian cloud with its file, or the mesh, as the plan asked; the cut-outs if the
            plan ends there, None in the place of one that failed.
        timings: Seconds that each stage occupied its lane, summed over its steps, without waiting,
            in the order in which the stages began.
        seen: The cut-out on the way, with its picture; the first of several.
    """

    task_id: str
    rung: str
    made: Asset | TriangleMesh | tuple[Cutout | None, ...]
    timings: Mapping[str, float]
    seen: Cutout

    @property
    def image(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, drawn or given; see `Cutout.picture`."""
        return self.seen.picture

    @property
    def cutout(self) -> NDArray[np.uint8]:
        """(S, S, 4) uint8 RGBA, the object alone, framed."""
        return self.seen.rgba

    @property
    def asset(self) -> Asset:
        """The Gaussian cloud with its file.

        Raises:
            TypeError: The task became something else.
        """
        if not isinstance(self.made, Asset):
            raise TypeError(f"the task {self.task_id} became a {type(self.made).__name__}")
        return self.made

    @property
    def cloud(self) -> GaussianCloud:
        """The Gaussian cloud."""
        return self.asset.cloud

    @property
    def spz(self) -> bytes:
        """The cloud as an SPZ file."""
        return self.asset.spz

    @property
    def validity(self) -> ValidityReport:
        """The validator's checks, all passed."""
        return self.asset.validity

    @property
    def score(self) -> Score | None:
        """What a validator is expected to say of a cloud; None without a scorer, or of a mesh."""
        return self.made.score if isinstance(self.made, Asset) else None
