"""Frames of a video: which are taken, from where, and what is said of videos that cannot be read."""

import builtins

import numpy as np
import pytest
from PIL import Image

from perdure import videos
from perdure.errors import MissingExtra, UnreadableExample


def grays(count, size=(16, 8)):
    """Frames that tell their place by their color."""
    return [np.full((size[1], size[0], 3), 20 * i, np.uint8) for i in range(count)]


def film(path, count=10, rate=5):
    """A video file of such frames."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for pixels in grays(count, (32, 32)):
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def colors(found):
    return [np.asarray(image).mean() for image in found.images]


def test_frames_are_the_middle_ones_of_equal_parts():
    assert videos.evenly(4, 16) == (2, 6, 10, 14)
    assert videos.evenly(1, 5) == (2,)
    assert videos.evenly(4, 2) == (0, 0, 1, 1)
    assert videos.evenly(3, 3) == (0, 1, 2)


def test_lists_and_folders_of_frames_are_alike_and_a_file_says_how_fast_it_is(tmp_path):
    for i, pixels in enumerate(grays(10)):
        Image.fromarray(pixels).save(tmp_path / f"{i:03d}.png")
    listed, folder = videos.frames(grays(10), 3, rate=2), videos.frames(tmp_path, 3, rate=2)
    assert listed.places == folder.places == (1, 5, 8)
    assert colors(listed) == colors(folder) == [20, 100, 160]
    assert (folder.total, folder.rate) == (10, 2)
    read = videos.frames(film(tmp_path / "clip.mp4"), 3, rate=2)
    assert (read.places, read.total, read.rate) == ((1, 5, 8), 10, 5)
    assert np.allclose(colors(read), [20, 100, 160], atol=6)  # it was compressed


def test_video_shorter_than_asked_repeats_frames():
    assert colors(videos.frames(grays(2), 4)) == [0, 0, 20, 20]


def test_what_cannot_be_read_is_said_with_its_place(tmp_path, monkeypatch):
    with pytest.raises(UnreadableExample, match=r"clip 7 .*no\.mp4.*there is no such file"):
        videos.frames(tmp_path / "no.mp4", 4, where="clip 7")
    with pytest.raises(UnreadableExample, match="there are no frames"):
        videos.frames(tmp_path, 4)
    with pytest.raises(UnreadableExample, match="x: frames of 16 x 8 and of 8 x 8 pixels"):
        videos.frames([*grays(1), *grays(1, (8, 8))], 2, where="x")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all" * 9)
    pytest.importorskip("av")
    with pytest.raises(UnreadableExample, match=r"broken\.mp4: the video cannot be read"):
        videos.frames(broken, 4)
    imported = builtins.__import__

    def lacking(name, *more):
        if name == "av":
            raise ImportError
        return imported(name, *more)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(MissingExtra, match="PyAV"):
        videos.frames(broken, 4)
