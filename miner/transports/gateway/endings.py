"""What can become of a gateway's task."""

from typing import Literal

Ending = Literal["delivered", "reported", "refused", "gone", "lost"]
"""What became of a task: delivered (the result was taken), reported (the failure was), refused (by
the gateway), gone (it is not this worker's task any more), lost (no answer in time)."""
