"""File descriptors, of which every connection takes one."""

import contextlib
import os
import resource


def allow_open_files(wanted: int) -> int:
    """Raises the process's limit of open files as far as it may, and returns the limit.

    Shells and containers often start programs with 1024 where the system allows many more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if allowed > soft:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
                soft = allowed
    return wanted if soft == resource.RLIM_INFINITY else soft


class DescriptorReserve:
    """File descriptors that are held, to be given up when the process has run out of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: list[int] = []

    def take(self) -> bool:
        """Takes them unless they are held; returns whether they have just been taken."""
        if self._held:
            return False
        try:
            for _ in range(self._size):
                self._held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            self.release()
        return bool(self._held)

    def release(self) -> bool:
        """Gives them up; returns whether there were any."""
        held, self._held = self._held, []
        for descriptor in held:
            os.close(descriptor)
        return bool(held)
