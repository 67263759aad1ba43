"""What can be wrong with a checkpoint."""

from protocol.errors import SetupError


class CheckpointError(SetupError):
    """A model's files are absent, damaged or of another model.

    Args:
        problem: The file, the key, what was found and what was expected.
        fix: What to type or change.
    """

    def __init__(
        self,
        problem: str,
        *,
        fix: str = "fetch the model again (public ones: stabilityai/TripoSR, VAST-AI/TripoSplat)",
    ) -> None:
        super().__init__(problem, fix=fix)
