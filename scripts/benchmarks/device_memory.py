"""Peaks of memory, of a start and of what comes after it."""

from pathlib import Path


class DeviceMemory:
    """Watches what torch takes of a CUDA device; on the CPU it watches the process alone.

    Args:
        device: In torch's words.
        limit_gib: Most that may be reserved, in GiB; beyond it torch is out of memory.
    """

    def __init__(self, device: str, limit_gib: float | None) -> None:
        import torch

        self._cuda = torch.cuda if device.startswith("cuda") and torch.cuda.is_available() else None
        self._index = torch.device(device).index or 0
        self._start: dict[str, float] = {}
        if self._cuda is not None and limit_gib is not None:
            total = self._cuda.get_device_properties(self._index).total_memory
            share = min(1.0, limit_gib * 2**30 / total)
            self._cuda.set_per_process_memory_fraction(share, self._index)

    def mark_ready(self) -> None:
        """Ends the start."""
        self._start = self._now()
        if self._cuda is not None:
            self._cuda.reset_peak_memory_stats(self._index)

    def peaks(self) -> dict[str, float]:
        """Peaks in 10^6 bytes, after `mark_ready`.

        Returns:
            `host`; on CUDA also `device`, what torch reserved at most, and `device_allocated`, what
            tensors took of it, both with the start; `serving` and `serving_allocated`, the same
            without it; `device_in_use`, by all processes and with the CUDA context, now.
        """
        peaks = {"host": _peak_of_process_mb()}
        if self._cuda is None:
            return peaks
        serving = self._now()
        free, total = self._cuda.mem_get_info(self._index)
        return peaks | {
            "device": max(serving["reserved"], self._start["reserved"]),
            "device_allocated": max(serving["allocated"], self._start["allocated"]),
            "serving": serving["reserved"],
            "serving_allocated": serving["allocated"],
            "device_in_use": (total - free) / 1e6,
        }

    def _now(self) -> dict[str, float]:
        if self._cuda is None:
            return {}
        return {
            "reserved": self._cuda.max_memory_reserved(self._index) / 1e6,
            "allocated": self._cuda.max_memory_allocated(self._index) / 1e6,
        }


def _peak_of_process_mb() -> float:
    """Most main memory of this program; getrusage would count what started it as well."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6
