"""The score that a validator gives, of the four numbers that it has drawn from its views."""

import numpy as np

MIN_ALIGNMENT = 0.3
"""Below it the score is 0; exactly this much passes."""
QUALITY_SHARE = 0.75
ALIGNMENT_SHARE = 0.2
_SIMILARITY_SHARE = 0.025


def final_score(iqa: float, alignment: float, ssim: float, lpips: float) -> float:
    """Returns the validator's score.

    The order and the types are the validator's: its sigmoids are float32, so the sum is.

    Args:
        iqa: Mean image quality, 0..1.
        alignment: With the prompt; of text, already divided by 0.35, so it may exceed 1.
        ssim: Likeness of neighbouring views.
        lpips: 1 minus their perceptual distance.

    Returns:
        A float32 value, 0 if the alignment is below 0.3, else NaN if any of them is NaN.
    """
    if alignment < MIN_ALIGNMENT:
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        content = np.float32(QUALITY_SHARE * iqa + ALIGNMENT_SHARE * alignment)
        structure = np.float32(_SIMILARITY_SHARE) * _sigmoid(ssim, slope=35, centre=0.83)
        likeness = np.float32(_SIMILARITY_SHARE * lpips) * _sigmoid(lpips, slope=30, centre=0.7)
        return float(content + structure + likeness)


def _sigmoid(value: float, slope: float, centre: float) -> np.float32:
    one = np.float32(1.0)
    distance = np.float32(value) - np.float32(centre)
    return np.float32(one / (one + np.exp(np.float32(-slope) * distance)))
