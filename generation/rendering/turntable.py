"""A cloud on a turntable: its pictures all the way round, and the file that plays them."""

import importlib.util
import tempfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from generation.rendering.cameras import DISTANCE, ELEVATION, FOV, orbit_camera
from generation.rendering.validator import as_seen_by_validator
from generation.rendering.views import Backend, render_on_white
from protocol.errors import SetupError
from protocol.gaussians import GaussianCloud

if TYPE_CHECKING:
    from av.container import OutputContainer

_AT_ONCE = 8
"""Pictures rendered at a time on a GPU; on the CPU, one per thread."""

_CRF = "18"
"""libx264's constant quality, visually close to lossless; other encoders ignore it."""


def turntable(
    cloud: GaussianCloud, frames: int, size: int, *, backend: Backend = "auto"
) -> Iterator[NDArray[np.uint8]]:
    """Renders a cloud from `frames` directions, evenly all the way round, as validators see it.

    The first picture is the validator's view 0, from the front; elevation, distance and field of
    view are those of all its views.

    Args:
        cloud: As a miner answers it.
        frames: How many pictures, at least 1.
        size: Width and height of each, in pixels.
        backend: See `generation.rendering.views.render_layers`.

    Yields:
        (size, size, 3) uint8 RGB on white, as soon as it is there.

    Raises:
        ValueError: A bad size, or a cloud that cannot be rescaled.
        SetupError: gsplat was asked for and cannot run.
    """
    seen = as_seen_by_validator(cloud)
    cameras = [
        orbit_camera(360 * index / frames, ELEVATION, radius=DISTANCE, fov=FOV, size=size)
        for index in range(frames)
    ]
    step = _AT_ONCE if torch.cuda.is_available() else torch.get_num_threads()
    for start in range(0, frames, step):
        yield from render_on_white(seen, cameras[start : start + step], backend=backend)


def require_video() -> None:
    """Tells early that no video can be written.

    Raises:
        SetupError: PyAV is not installed, or does not run here.
    """
    if importlib.util.find_spec("av") is None:
        raise SetupError(
            "an .mp4 is written with PyAV (av), which is not installed",
            fix="pip install -e '.[video]'",
        )
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise SetupError(
            f"an .mp4 is written with PyAV (av), which does not run here: {error}",
            fix="pip install --force-reinstall --only-binary av av",
        ) from error


def encode_mp4(pictures: Iterable[NDArray[np.uint8]], size: int, *, fps: int) -> bytes:
    """Encodes pictures as H.264 in MP4, 4:2:0, BT.709, with the index in front: browsers play it.

    Args:
        pictures: (size, size, 3) uint8 RGB each; at least one.
        size: Width and height in pixels; even.
        fps: Pictures per second.

    Raises:
        SetupError: PyAV is not installed or does not run, or its FFmpeg has no H.264 encoder.
        ValueError: No picture, one of another size, or an odd size.
    """
    if size % 2:
        raise ValueError(f"the sides of a video must be even, got {size}")
    require_video()
    import av

    # In a file: the index gets to its front by a second pass that opens it by its name.
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        with av.open(file.name, "w", options={"movflags": "faststart"}) as container:
            _encode(container, pictures, size, fps)
        return file.read()


def _encode(
    container: "OutputContainer", pictures: Iterable[NDArray[np.uint8]], size: int, fps: int
) -> None:
    import av
    from av.codec.codec import UnknownCodecError
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

    try:
        stream = container.add_stream("h264", rate=fps, options={"crf": _CRF})
    except UnknownCodecError:
        raise SetupError(
            f"the FFmpeg of PyAV {av.__version__} has no H.264 encoder",
            fix="pip install --force-reinstall --only-binary av av",
        ) from None
    stream.width = stream.height = size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.colorspace = Colorspace.ITU709
    context.color_primaries = ColorPrimaries.BT709
    context.color_trc = ColorTrc.BT709
    context.color_range = ColorRange.MPEG
    count = 0
    for picture in pictures:
        if picture.shape != (size, size, 3):
            raise ValueError(f"expected pictures of ({size}, {size}, 3), got {picture.shape}")
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        container.mux(stream.encode(frame))
        count += 1
    if not count:
        raise ValueError("a video needs at least one picture")
    container.mux(stream.encode())
