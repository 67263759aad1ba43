"""The checks by which a validator zeroes a result, run before it is answered.

A validator sees the cloud after SPZ, which rounds it: opacity to steps of 1/255, so anything under
0.00196 arrives as 0; and the identity rotation to the bytes 128 128 128, which decode to half a
degree away from it. So opacity is judged as SPZ rounds it, and a rotation counts as identity when
it lies within one SPZ step (0.0078 per component) of it, whichever sign the quaternion has. Both
are at least as strict as the validator's own comparison on either side of the codec.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from protocol.gaussians import GaussianCloud

MIN_GAUSSIANS = 7_000
MAX_TRANSPARENT_SHARE = 0.8
TRANSPARENT_OPACITY = 1e-3
FULL_OPACITY_SIDE = 1.5
MAX_OFF_CENTRE = 0.1
MAX_STRAY_RATIO = 1.2
HEALTHY_WIRE_BYTES = 2_000_000

Bound = Literal["at least", "at most", "under"]

IDENTITY_STEP = 1.0 / 127.5
"""One SPZ step: rotations whose x, y and z are all smaller count as the identity."""

_STRAY_SHARE = 0.001


@dataclass(frozen=True)
class Check:
    """One named result.

    Attributes:
        name: A short identifier, as written in logs.
        passed: Whether `measured` respects `limit`.
        measured: The value found.
        limit: The bound that it has to keep.
        explanation: What was measured, which side of the limit is wanted, and why it matters.
        bound: The side of the limit that is wanted.
    """

    name: str
    passed: bool
    measured: float
    limit: float
    explanation: str
    bound: Bound = "at most"

    @property
    def wanted(self) -> str:
        """What `measured` has to be, such as "at least 1.5"."""
        return f"{self.bound} {figure(self.limit)}"


@dataclass(frozen=True)
class ValidityReport:
    """What a validator's data checks will say of a cloud.

    Attributes:
        checks: Those that zero a result when they fail.
        advice: Those that a validator does not make, but whose failure costs score or time.
    """

    checks: tuple[Check, ...]
    advice: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check that zeroes a result passed; advice does not count."""
        return all(check.passed for check in self.checks)

    @property
    def warnings(self) -> tuple[Check, ...]:
        """The advice that was not met."""
        return tuple(check for check in self.advice if not check.passed)

    def summary(self) -> str:
        """One line for a log: the verdict, then each failure and warning with its figures."""

        def describe(check: Check) -> str:
            return f"{check.name} is {check.measured:g} (limit {check.limit:g})"

        failures = [describe(check) for check in self.checks if not check.passed]
        warnings = [f"warning: {describe(check)}" for check in self.warnings]
        return "; ".join(["valid" if self.passed else "invalid", *failures, *warnings])


def figure(value: float) -> str:
    """A measured value or a limit for people: whole numbers in full, others to four digits."""
    return f"{value:,.0f}" if value == round(value, 0) else f"{value:.4g}"


@dataclass(frozen=True, eq=False)
class Measures:
    """What the checks need to know of a cloud.

    Attributes:
        count: Number of Gaussians.
        transparent_share: Share of opacities under `TRANSPARENT_OPACITY` once SPZ has rounded them.
        identity_share: Share of rotations within one SPZ step of the identity.
        low, high: (3,) float64 box of the centres.
        core_low, core_high: (3,) float64, the same without the outermost 0.1 % at either end of
            each axis.
        mean: Of all coordinates together.
    """

    count: int
    transparent_share: float
    identity_share: float
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    core_low: NDArray[np.float64]
    core_high: NDArray[np.float64]
    mean: float


def check(cloud: GaussianCloud, *, wire_bytes: int | None = None) -> ValidityReport:
    """Runs the validator's data checks, and some advice on what its renderer makes of the cloud.

    Finiteness is not checked: a GaussianCloud cannot hold NaN or infinity.

    Args:
        cloud: The cloud to be answered; it may be empty, which fails.
        wire_bytes: Size of its SPZ file, if known; adds advice on it.
    """
    return report_on(_measure(cloud), wire_bytes=wire_bytes)


def report_on(measures: Measures, *, wire_bytes: int | None = None) -> ValidityReport:
    """Judges what was measured of a cloud; see `check`."""
    return ValidityReport(
        checks=(
            _count(measures.count),
            _transparent_share(measures.transparent_share),
            _identity_share(measures.identity_share),
        ),
        advice=(
            *(_geometry(measures) if measures.count else ()),
            *(() if wire_bytes is None else (_wire(wire_bytes),)),
        ),
    )


def stray_count(count: int) -> int:
    """How many of a number of centres are left out of the core at either end of each axis."""
    return round(_STRAY_SHARE * max(0, count - 1))


def _measure(cloud: GaussianCloud) -> Measures:
    after_spz = np.floor(cloud.opacities * 255.0 + 0.5) / 255.0
    norms = np.sqrt(np.einsum("ij,ij->i", cloud.rotations, cloud.rotations))
    x, y, z = np.abs(_columns(cloud.rotations)[1:])
    largest = np.maximum(np.maximum(x, y), z)
    positions = _columns(cloud.positions) if len(cloud) else np.zeros((3, 1), np.float32)
    stray = stray_count(len(cloud))
    ordered = np.partition(positions, [stray, -1 - stray], axis=1).astype(np.float64)
    return Measures(
        count=len(cloud),
        transparent_share=_mean(after_spz < TRANSPARENT_OPACITY),
        identity_share=_mean((largest < IDENTITY_STEP * norms) & (norms > 0)),
        low=positions.min(axis=1).astype(np.float64),
        high=positions.max(axis=1).astype(np.float64),
        core_low=ordered[:, stray],
        core_high=ordered[:, -1 - stray],
        mean=float(positions.mean(dtype=np.float64)),
    )


def _count(count: int) -> Check:
    return Check(
        name="gaussians",
        passed=count >= MIN_GAUSSIANS,
        measured=count,
        limit=MIN_GAUSSIANS,
        bound="at least",
        explanation="number of Gaussians; a cloud with fewer than the limit scores 0",
    )


def _transparent_share(share: float) -> Check:
    return Check(
        name="transparent_share",
        passed=share <= MAX_TRANSPARENT_SHARE,
        measured=share,
        limit=MAX_TRANSPARENT_SHARE,
        explanation=f"share of opacities under {TRANSPARENT_OPACITY:g} once SPZ has rounded them; "
        "a cloud with more than the limit scores 0",
    )


def _identity_share(share: float) -> Check:
    return Check(
        name="identity_share",
        passed=share < 1.0,
        measured=share,
        limit=1.0,
        bound="under",
        explanation="share of rotations within one SPZ step of (1, 0, 0, 0); a cloud in which all "
        "are scores 0, so it must stay under the limit",
    )


def _geometry(measures: Measures) -> tuple[Check, ...]:
    low, high = measures.low, measures.high
    side = float((high - low).max())
    scale = FULL_OPACITY_SIDE / side if side > 0 else 0.0
    off_centre = float(np.abs((low + high) / 2 - measures.mean).max() * scale)
    core_side = float((measures.core_high - measures.core_low).max())
    stray_ratio = side / core_side if core_side > 0 else 1.0 if side == 0 else float("inf")
    return (
        Check(
            name="largest_side",
            passed=side >= FULL_OPACITY_SIDE,
            measured=side,
            limit=FULL_OPACITY_SIDE,
            bound="at least",
            explanation="largest side of the box of the centres; under the limit, the validator "
            "multiplies every opacity by side / limit",
        ),
        Check(
            name="off_centre",
            passed=off_centre <= MAX_OFF_CENTRE,
            measured=off_centre,
            limit=MAX_OFF_CENTRE,
            explanation="how far, on its worst axis, the middle of the box lies from the middle of "
            "the validator's picture (it subtracts one mean for all three axes); 0.1 is 23 pixels",
        ),
        Check(
            name="stray_ratio",
            passed=stray_ratio <= MAX_STRAY_RATIO,
            measured=stray_ratio,
            limit=MAX_STRAY_RATIO,
            explanation="largest side over that without the outermost 0.1 % at either end of each "
            "axis; floaters enlarge the box, so the validator shrinks the object",
        ),
    )


def _wire(wire_bytes: int) -> Check:
    return Check(
        name="wire_bytes",
        passed=wire_bytes <= HEALTHY_WIRE_BYTES,
        measured=wire_bytes,
        limit=HEALTHY_WIRE_BYTES,
        explanation="size of the SPZ file; the subnet calls 1 to 2 MB healthy, and more only takes "
        "longer to send and to validate",
    )


def _columns(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, N) of (N, C): NumPy reduces along long rows ten times as fast as along short ones."""
    return np.ascontiguousarray(rows.T)


def _mean(mask: NDArray[np.bool_]) -> float:
    """Share that is true; 1 for no elements, because an empty cloud shows nothing."""
    return float(mask.mean()) if mask.size else 1.0
