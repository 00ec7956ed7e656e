"""Videos become frames and sound: lengths, rates, channels, silence, broken files, and going on after a stop."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from perdure.data import clip_folder
from perdure.errors import DataError
from perdure.families.audio_visual.inputs import preprocess
from perdure.prepare.audio_visual import decode, prepare_videos

SAMPLE = Path(__file__).resolve().parents[3] / "shared/data/av_samples/LLP_BjCEufrlXm4/BjCEufrlXm4.mp4"


def video(
    path: Path,
    *,
    seconds: int = 3,
    rate: int = 44100,
    layout: str | None = "stereo",
    tone: float = 440.0,
    fps: int = 8,
    starts: tuple[int, int] = (0, 0),
) -> Path:
    """Frame n is grey n; the sound is a tone of amplitude 0.5 (None: no sound track). `starts`: seconds at which
    picture and sound begin."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=fps)
        pictures.width, pictures.height, pictures.pix_fmt = 32, 16, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=rate) if layout else None
        if sound is not None:
            sound.layout = layout  # type: ignore[assignment]
        for i in range(seconds * fps):
            grey = np.full((16, 32, 3), 40 + 60 * (i // fps), dtype=np.uint8)
            shown = av.VideoFrame.from_ndarray(grey, format="rgb24")
            shown.pts, shown.time_base = i + starts[0] * fps, Fraction(1, fps)
            for packet in pictures.encode(shown):
                container.mux(packet)
        for packet in pictures.encode():
            container.mux(packet)
        if sound is not None:
            channels = 2 if layout == "stereo" else 1
            time = np.arange(seconds * rate) / rate
            wave = np.repeat(16000 * np.sin(2 * np.pi * tone * time), channels).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="s16", layout=layout)  # type: ignore[arg-type]
            frame.rate = rate
            frame.pts, frame.time_base = starts[1] * rate, Fraction(1, rate)
            for packet in [*sound.encode(frame), *sound.encode()]:
                container.mux(packet)
    return path


@pytest.mark.parametrize(("rate", "layout"), [(44100, "stereo"), (48000, "mono"), (16000, "mono")])
def test_any_rate_and_layout_becomes_mono_at_32_khz(tmp_path, rate, layout):
    frames, wave, whole = decode(video(tmp_path / "a.mkv", rate=rate, layout=layout), seconds=3)
    assert whole and wave.shape == (96000,) and wave.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(wave[32000:64000]))
    assert spectrum.argmax() == 440
    assert np.abs(wave[32000:64000]).max() == pytest.approx(16000 / 32768, abs=0.02)
    assert [round(float(np.asarray(f).mean()) / 60 - 40 / 60) for f in frames] == [0, 1, 2]


def test_a_short_video_stands_still_and_falls_silent(tmp_path):
    frames, wave, whole = decode(video(tmp_path / "a.mkv", seconds=2), seconds=5)
    assert not whole and len(frames) == 5
    assert np.array_equal(np.asarray(frames[2]), np.asarray(frames[4]))
    assert np.abs(wave[:60000]).max() > 0.3 and not wave[70000:].any()


def test_a_folder_is_prepared_and_its_faults_are_listed(tmp_path):
    source, out = tmp_path / "videos", tmp_path / "out"
    video(source / "cat" / "one.mkv")
    video(source / "cat" / "two.mkv", seconds=2)
    video(source / "dog" / "mute.mkv", layout=None)
    video(source / "dog" / "quiet.mkv", tone=0.0)
    (source / "dog" / "broken.mkv").write_bytes(b"no video")
    report = prepare_videos(source, out, seconds=3)
    assert report.made == 4 and report.short == ["cat/two"]
    assert report.silent == ["dog/mute", "dog/quiet"]
    assert list(report.broken) == ["dog/broken"] and report.broken["dog/broken"]
    data = clip_folder.read(clip_folder.Config(root=out, segments=3, test_share=0))
    assert [e.id for e in data.train] == ["cat/one", "cat/two", "dog/mute", "dog/quiet"]
    assert preprocess(data.train[0], size=16, training=True)["wave"].shape == (3, 32000)


def test_preparing_again_goes_on_where_it_stopped(tmp_path):
    source, out = tmp_path / "videos", tmp_path / "out"
    for name in ("a", "b"):
        video(source / f"{name}.mkv", seconds=2)
    prepare_videos(source, out, seconds=2)
    before = (out / "wave" / "a.npy").stat().st_mtime_ns
    (out / "wave" / "b.npy").unlink()
    report = prepare_videos(source, out, seconds=2, workers=2)
    assert (report.made, report.there_already) == (1, 1)
    assert (out / "wave" / "a.npy").stat().st_mtime_ns == before and (out / "wave" / "b.npy").is_file()


def test_a_folder_without_videos_and_two_videos_of_one_name_are_refused(tmp_path):
    with pytest.raises(DataError, match="no video is here"):
        prepare_videos(tmp_path, tmp_path / "out")
    for suffix in ("mkv", "mov"):
        (tmp_path / f"a.{suffix}").touch()
    with pytest.raises(DataError, match="the same name"):
        prepare_videos(tmp_path, tmp_path / "out")


def test_sound_that_starts_later_is_silent_until_then(tmp_path):
    frames, wave, _ = decode(video(tmp_path / "a.mkv", starts=(0, 2)), seconds=4)
    assert not wave[:63000].any() and np.abs(wave[65000:96000]).max() > 0.3
    assert [round((float(np.asarray(f).mean()) - 40) / 60) for f in frames[:3]] == [0, 1, 2]


def test_a_picture_that_starts_later_stands_still_until_then(tmp_path):
    frames, wave, _ = decode(video(tmp_path / "a.mkv", starts=(2, 0)), seconds=5)
    assert [round((float(np.asarray(f).mean()) - 40) / 60) for f in frames] == [0, 0, 0, 1, 2]
    assert np.abs(wave[:30000]).max() > 0.3


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """A video of 16 x 8 pixels, bright in the upper left quarter, with a display matrix (a, b, c, d)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8, options={"qscale": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        picture = np.zeros((32, 64, 3), np.uint8)
        picture[:16, :32] = 255
        for _ in range(8):
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    a, b, c, d = (65536 * v for v in matrix)
    data, plain = path.read_bytes(), struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    at = data.index(plain, data.index(b"tkhd"))
    path.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :])
    return path


@pytest.mark.parametrize(
    "matrix", [(s, 0, 0, t) for s in (1, -1) for t in (1, -1)] + [(0, s, t, 0) for s in (1, -1) for t in (1, -1)]
)
def test_frames_are_turned_as_they_are_to_be_shown(tmp_path, matrix):
    frames, _, _ = decode(turned(tmp_path / "phone.mp4", matrix), seconds=1)
    a, b, c, d = matrix
    assert frames[0].size == ((64, 32) if a else (32, 64))
    shown = np.asarray(frames[0].convert("L")) > 128
    # the bright quarter's middle, seen from the picture's, is at (-1, -1) and is sent to (a x + c y, b x + d y)
    right, low = -a - c > 0, -b - d > 0
    height, width = shown.shape
    quarter = shown[height // 2 :] if low else shown[: height // 2]
    quarter = quarter[:, width // 2 :] if right else quarter[:, : width // 2]
    assert quarter.mean() > 0.9 and shown.mean() < 0.3


def test_a_real_video():
    if not SAMPLE.is_file():
        pytest.skip("the pack of audio-visual samples is not here")
    frames, wave, whole = decode(SAMPLE, seconds=10)
    assert whole and len(frames) == 10 and frames[0].size == (320, 240)
    assert wave.shape == (320000,) and 0.01 < np.abs(wave).mean() < 0.5
    assert not np.array_equal(np.asarray(frames[0]), np.asarray(frames[9]))
