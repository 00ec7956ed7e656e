"""Sound and truth that are not as they should be: a message that says what, or a treatment that is stated."""

from __future__ import annotations

from dataclasses import replace

import av_files
import numpy as np
import pytest
import tiny_audio_visual as tiny
import torch
from torch.utils.data import default_collate

from perdure.data import llp
from perdure.errors import DataError, UnreadableExample
from perdure.families.audio_visual import learning, readout
from perdure.families.audio_visual.inputs import RATE, problem_of, read_wave
from perdure.methods.php import Config, Php
from perdure.runtime import Runtime


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((2 * RATE,), "the wave has 64000 samples, the video 3 frames"),  # shorter than the frames
        ((3 * 44_100,), "the wave has 132300 samples, the video 3 frames"),  # another rate
        ((2, 3 * RATE), "the wave has 192000 samples, in an array of 2 x 96000, the video 3 frames"),  # stereo
        ((2, 3 * RATE // 2), "the wave has 96000 samples, in an array of 2 x 48000, the video 3 frames"),
    ],
)
def test_waves_that_are_not_a_second_of_mono_sound_a_frame_are_refused(shape, found):
    with pytest.raises(UnreadableExample, match=found):
        read_wave(np.zeros(shape, dtype=np.float32), 3, where="clip")


def test_whole_numbers_become_fractions_and_a_row_may_be_a_second():
    wave = np.zeros((3, RATE), dtype=np.int16)
    wave[1, 0] = 32767
    found = read_wave(wave, 3, where="clip")
    assert found.shape == (3, RATE) and found[1, 0] == 1
    assert torch.equal(found, read_wave(wave.reshape(1, -1), 3, where="clip"))


@pytest.mark.parametrize("kind", ["localize-events", "parse-video", "answer", "segment"])
def test_silence_an_empty_mask_and_no_event_give_finite_losses_and_gradients(kind):
    task = tiny.task(kind, 0, train=1, test=1)
    example = task.train[0]
    empty = {"parse-video": {"labels": []}, "segment": [np.zeros((tiny.SIZE, tiny.SIZE))]}.get(kind, example.target)
    silent = {**example.inputs, "wave": np.zeros_like(example.inputs["wave"])}
    method, problem = Php(Config(**tiny.SETTINGS), clip=tiny.clip(), audio=tiny.clap()), problem_of(task)
    parts = method.tasks.begin(problem, Runtime(device="cpu", quiet=True))
    batch = default_collate([method.preprocess(replace(example, inputs=silent, target=empty), True)])
    texts = method.system.texts(problem)
    out = learning.forward(method.system, problem, parts, method.insert, batch, texts=texts)
    loss = readout.loss(problem, out, batch, method.system.readout)["loss"]
    loss.backward()
    gradients = [p.grad for p in parts.parameters() if p.grad is not None]
    assert torch.isfinite(loss) and gradients and all(torch.isfinite(g).all() for g in gradients)


def test_a_row_without_an_event_is_named(tmp_path):
    root = av_files.llp(tmp_path / "LLP")
    file = root / "labels" / "AVVP_train.csv"
    file.write_text(file.read_text().replace("\tCar", "\t"))
    with pytest.raises(DataError, match=r"AVVP_train.csv, line 3: there is no class ''"):
        llp.read(llp.Config(root=root))
