"""The errors that every floor shares."""


class CodecError(ValueError):
    """Bytes that are not a valid asset, or a cloud that a format cannot hold."""


class TaskError(ValueError):
    """A task that cannot be accepted; the message names the value, the limit and the remedy."""


class SetupError(RuntimeError):
    """A reason not to start: what is wrong, and the command or action that fixes it.

    Args:
        problem: One sentence naming the value that was found and what was expected.
        fix: What the operator should type or change; it may have several lines.
    """

    def __init__(self, problem: str, *, fix: str) -> None:
        indented = fix.replace("\n", "\n       ")
        super().__init__(f"{problem}\n  fix: {indented}")
        self.problem = problem
        self.fix = fix
