"""A turntable shows a cloud once all the way round, in a file that browsers play."""

import importlib.util
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from generation.rendering import render_views
from generation.rendering.turntable import encode_mp4, require_video, turntable
from protocol.errors import SetupError
from tests.support.clouds import make_cloud

RED, GREEN, BLUE, WHITE = (0.8, 0.1, 0.1), (0.1, 0.6, 0.1), (0.1, 0.1, 0.8), (255, 255, 255)
CLOUD = make_cloud(
    [(0.75, 0.0, 0.0), (-0.75, 0.0, 0.0), (0.0, 0.3, 0.75)],
    sigmas=(0.12, 0.12, 0.12),
    opacity=0.99,
    colors=[RED, GREEN, BLUE],
)


def test_pictures_go_once_round_and_begin_at_the_validators_front() -> None:
    pictures = list(turntable(CLOUD, 15, 32, backend="cpu"))
    assert len(pictures) == 15
    # The validator's sixteen views are 24 degrees apart; the last repeats the first.
    expected = render_views(CLOUD, range(15), size=32, backend="cpu")
    np.testing.assert_array_equal(np.stack(pictures), expected)


def test_pictures_come_while_others_are_still_to_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    endless = turntable(CLOUD, 10_000, 16, backend="cpu")
    assert next(endless).shape == (16, 16, 3)


def squares(size: int, count: int) -> Iterator[NDArray[np.uint8]]:
    for index in range(count):
        picture = np.full((size, size, 3), WHITE, np.uint8)
        picture[size // 4 : -size // 4, 2 * index : 2 * index + size // 2] = (214, 20, 20)
        yield picture


def test_the_file_holds_every_picture_in_its_colours() -> None:
    data = encode_mp4(squares(64, 12), 64, fps=12)
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.width, context.height) == (64, 64)
        assert stream.average_rate == 12
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 12
    for frame, picture in zip(frames, squares(64, 12), strict=True):
        # 4:2:0 halves the resolution of colours, so edges are blurred.
        assert np.abs(frame.astype(int) - picture).mean() < 4
        np.testing.assert_allclose(frame[32, 40], picture[32, 40], atol=4)


def test_playing_can_begin_before_the_whole_file_is_there() -> None:
    data = encode_mp4(squares(64, 2), 64, fps=24)
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(
    ("pictures", "size", "said"),
    [
        ([], 64, "at least one picture"),
        (squares(63, 1), 63, "must be even, got 63"),
        (squares(32, 1), 64, r"\(64, 64, 3\), got \(32, 32, 3\)"),
    ],
)
def test_unusable_pictures_are_refused(
    pictures: list[NDArray[np.uint8]], size: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        encode_mp4(pictures, size, fps=24)


def test_a_missing_library_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install -e '\.\[video\]'"):
        encode_mp4(squares(64, 1), 64, fps=24)


def test_a_broken_library_is_named_before_anything_is_drawn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "av.py").write_text("raise ImportError('libavcodec.so: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "av")
    with pytest.raises(SetupError, match=r"does not run here: libavcodec\.so: no such file"):
        require_video()
