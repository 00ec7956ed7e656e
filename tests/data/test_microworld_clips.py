"""Clips of the generated world: sounds, who is seen and heard when, questions, and files that the real readers read."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from perdure.data import ave, avs_s4, llp, microworld, music_avqa
from perdure.data.microworld import clip_files, clip_questions, clips, disk, scenes, sound
from perdure.errors import DataError
from perdure.families.audio_visual.inputs import preprocess, problem_of
from perdure.metrics import audio_visual
from perdure.models import clap
from perdure.settings.config import Named

FEW = {"train_clips": 3, "validation_clips": 1, "test_clips": 2}


def one(shape: str, color: str, *, heard: bool = True) -> tuple[scenes.Scenes, np.ndarray]:
    """One object alone, heard for one second."""
    world = scenes.of_anything(0, "x", np.arange(1), shares=(1, 0, 0))
    world.shape[0, 0], world.color[0, 0] = scenes.SHAPES.index(shape), scenes.COLORS.index(color)
    return world, np.full((1, 3, 1), heard)


def spectrum(samples: np.ndarray, rate: int) -> np.ndarray:
    """Magnitude by hertz of one second."""
    assert len(samples) == rate
    return np.abs(np.fft.rfft(samples * np.hanning(rate)))


# -- sound --------------------------------------------------------------------------------------------------------


def test_the_sine_made_of_exact_operations_is_a_sine():
    turns = np.linspace(-3, 3, 10001)
    assert np.abs(sound.sine(turns) - np.sin(2 * np.pi * turns)).max() < 4e-6


@pytest.mark.parametrize("color", scenes.COLORS)
def test_the_color_is_the_pitch(color):
    # A circle is a pure tone, so that its loudest frequency is the pitch, up to 1.5 % of detuning.
    loudest = spectrum(sound.waves(*one("circle", color))[0], 32000).argmax()
    pitch = sound.PITCHES[scenes.COLORS.index(color)]
    assert abs(loudest / pitch - 1) < 0.02


def test_the_shape_is_the_timbre():
    # Red is at 200 Hz: a square has odd harmonics, at 600 Hz and not at 400; a ring has the octave and not the fifth.
    def levels(shape: str) -> list[float]:
        found = spectrum(sound.waves(*one(shape, "red"))[0], 32000)
        return [found[int(200 * h * 0.98) : int(200 * h * 1.02)].max() for h in (1, 2, 3)]

    square, ring = levels("square"), levels("ring")
    assert square[2] > 10 * square[1]
    assert ring[1] > 10 * ring[2]


def test_no_frequency_above_half_the_rate_is_made():
    # White is at 1597 Hz; at 8 kHz the third harmonic and those above do not fit.
    found = spectrum(sound.waves(*one("star", "white"), rate=8000)[0], 8000)
    assert found[3300:].max() < 0.05 * found.max()


def test_what_is_not_heard_is_noise_alone():
    silent, loud = (sound.waves(*one("star", "red", heard=h))[0] for h in (False, True))
    assert silent.std() <= 1.1 * sound.NOISE[1] and loud.std() > 0.9 * sound.LOUDNESS[0]


def test_waves_depend_on_the_clip_alone_and_not_on_those_beside_it():
    some = clips.parsed(0, "test", np.arange(5))
    last = clips.parsed(0, "test", np.asarray([4]))
    assert np.array_equal(clips.waves(some)[4], clips.waves(last)[0])
    assert np.array_equal(clips.frames(some)[4], clips.frames(last)[0])


def test_a_wav_file_holds_16_bits_a_sample(tmp_path):
    path = sound.write_wav(tmp_path / "a" / "x.wav", np.asarray([0, 1, -1, 0.5], np.float32), rate=16000)
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        assert np.frombuffer(file.readframes(4), "<i2").tolist() == [0, 32767, -32767, 16384]


# -- what is seen and heard -------------------------------------------------------------------------------------


def test_localized_events_are_one_run_in_which_the_first_object_is_seen_and_heard():
    some = clips.localized(0, "train", np.arange(100))
    both = some.seen[:, 0] & some.heard[:, 0]
    assert all(len(clips.spans(row)) == 1 for row in both) and both.sum(1).min() >= 2
    assert not some.heard[:, 1:].any()
    named = [(int(s), int(c)) for s, c in zip(some.scenes.shape[:, 0], some.scenes.color[:, 0])]
    assert named == [clips.EVENTS[i % 20] for i in range(100)]
    alone = (some.seen[:, 0] & ~some.heard[:, 0]).any(1), (some.heard[:, 0] & ~some.seen[:, 0]).any(1)
    assert all(10 < sort.sum() < 90 for sort in alone)  # sight alone and sound alone do occur


def test_parsed_clips_hold_events_of_one_sense_and_of_both():
    some = clips.parsed(0, "train", np.arange(200))
    seen, heard = some.seen.any(2), some.heard.any(2)
    assert ((seen | heard) == (np.arange(3) < some.scenes.count[:, None])).all()
    for share, expected in (((seen & heard), 0.5), ((seen & ~heard), 0.25), ((heard & ~seen), 0.25)):
        assert abs(share.sum() / some.scenes.count.sum() - expected) < 0.1


def test_objects_of_a_clip_have_different_shapes():
    for draw in (clips.localized, clips.parsed, clips.segmented, clips.asked_about):
        some = draw(0, "train", np.arange(100))
        for row, count in enumerate(some.scenes.count):
            assert len(set(some.scenes.shape[row, :count].tolist())) == count


def test_masks_are_of_what_is_seen_and_heard_and_of_nothing_else():
    some = clips.segmented(0, "train", np.arange(20))
    truth, pictures = clips.masks(some), clips.frames(some)
    assert truth.shape == (20, 5, 32, 32) and truth.any((2, 3)).all()
    row = int(np.flatnonzero(some.scenes.count == 2)[0])
    alone = clips.Clips(scenes=some.scenes, seen=some.seen & some.heard, heard=some.heard)
    lit = pictures[row, 0].max(-1) > 90
    assert (lit & truth[row, 0]).sum() < lit.sum()  # the silent object is in the picture, not in the mask
    assert np.array_equal(clips.masks(alone)[row], truth[row])


def test_an_empty_second_shows_the_ground_alone():
    some = clips.parsed(0, "train", np.arange(50))
    empty = ~some.seen.any(1)
    assert empty.any() and clips.frames(some)[empty].max() < 70 and not clips.masks(some)[empty].any()


# -- questions --------------------------------------------------------------------------------------------------


def two() -> clips.Clips:
    """A red star on the left, seen, heard in seconds 0 to 3; a blue ring on the right, heard in 2 to 9, not seen."""
    world = scenes.of_anything(0, "x", np.arange(1), shares=(0, 1, 0))
    world.shape[0, :2], world.color[0, :2] = (3, 5), (0, 2)
    world.x[0, :2], world.y[0, :2], world.radius[0, :2] = (0.2, 0.8), 0.5, 6 / 32
    seen, heard = (np.zeros((1, 3, 10), bool) for _ in range(2))
    seen[0, 0], heard[0, 0, :4], heard[0, 1, 2:] = True, True, True
    return clips.Clips(scenes=world, seen=seen, heard=heard)


def test_all_questions_about_a_clip_that_can_be_checked_by_hand():
    (asked,) = clip_questions.questions(two(), each=9)
    found = {(q.modality, q.kind): (q.text, q.values, q.answer) for q in asked}
    assert found[("Audio-Visual", "Existential")][1:] == (("star",), "no")
    assert found[("Audio", "Counting")][2] == "two"
    assert found[("Visual", "Counting")][2] == "one"
    assert found[("Audio-Visual", "Counting")][2] == "one"
    assert found[("Visual", "Location")][1:] == (("star",), "left")
    assert found[("Audio-Visual", "Location")][2] == "left"
    assert found[("Audio-Visual", "Temporal")] == ("Which object is heard first?", (), "star")
    _, values, answer = found[("Audio", "Comparative")]
    assert (values, answer) in ((("star", "ring"), "no"), (("ring", "star"), "yes"))
    assert ("Audio-Visual", "Comparative") not in found  # it needs two objects in sight


def test_questions_are_of_the_nine_types_and_fit_the_reader():
    rows = clip_questions.questions(clips.asked_about(0, "train", np.arange(120)))
    flat = [q for found in rows for q in found]
    assert {(q.modality, q.kind) for q in flat} == {(m, k) for m, kinds in audio_visual.TYPES.items() for k in kinds}
    assert all(len(music_avqa.words_of(q.text, q.values)) <= music_avqa.LONGEST for q in flat)
    assert all(len(found) == 3 for found in rows)
    assert max(np.unique([q.answer for q in flat], return_counts=True)[1]) < 0.4 * len(flat)


# -- files that the real readers read ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("world") / "out"
    disk.write("audio-visual", out, microworld.Config(**FEW))
    return out


def test_the_reader_of_ave_sees_the_classes_and_the_seconds(world):
    data = ave.read(ave.Config(root=world / "AVE"))
    assert data.candidates == (*clips.EVENT_CLASSES, "background")
    assert (len(data.train), len(data.validation), len(data.test)) == (3, 1, 2)
    some = clips.localized(0, "test", np.arange(2))
    both = some.seen[:, 0] & some.heard[:, 0]
    assert data.test.targets == np.where(both, np.arange(2)[:, None], 20).tolist()


def test_annotations_and_stored_labels_of_ave_agree(world, tmp_path):
    stored = ave.read(ave.Config(root=world / "AVE")).train.targets
    for folder in ("frames", "wave"):
        (tmp_path / folder).symlink_to(world / "AVE" / folder)
    (tmp_path / "labels").mkdir()
    for file in (world / "AVE" / "labels").iterdir():
        if file.name != "labels.h5":
            (tmp_path / "labels" / file.name).symlink_to(file)
    assert ave.read(ave.Config(root=tmp_path)).train.targets == stored


def test_the_reader_of_llp_sees_weak_labels_for_training_and_times_for_testing(world):
    data = llp.read(llp.Config(root=world / "LLP"))
    assert data.candidates == scenes.SHAPES and data.facts["times_without_video"] == {"audio": 0, "visual": 0}
    assert all(set(target) == {"labels"} for target in data.train.targets)
    some = clips.parsed(0, "test", np.arange(2))
    for row, target in enumerate(data.test.targets):
        shapes = some.scenes.shape[row, : some.scenes.count[row]].tolist()
        assert target["labels"] == sorted(shapes)
        for modality, spans in (("audio", some.heard), ("visual", some.seen)):
            expected = [[s, a, b] for k, s in enumerate(shapes) for a, b in clips.spans(spans[row, k])]
            assert sorted(target[modality]) == sorted(expected)


def test_the_reader_of_avs_sees_the_mask_of_what_sounds(world):
    data = avs_s4.read(avs_s4.Config(root=world / "AVS", size=32))
    assert [len(t) for t in (*data.train.targets, *data.test.targets)] == [1, 1, 1, 5, 5]
    truth = clips.masks(clips.segmented(0, "test", np.arange(2)))
    for row, paths in enumerate(data.test.targets):
        read = np.stack([audio_visual.read_mask(path, where="x").numpy() for path in paths])
        assert np.array_equal(read, truth[row])
    assert preprocess(data.train[0], size=32, training=True)["mask"].shape == (32, 32)


def test_the_reader_of_music_avqa_sees_questions_and_answers(world):
    data = music_avqa.read(music_avqa.Config(root=world / "AVQA", vocabulary="train"))
    assert len(data.train) == 9
    asked = clip_questions.questions(clips.asked_about(0, "train", np.arange(3)))
    expected = [(q.answer, [q.modality, q.kind]) for found in asked for q in found]
    assert [(data.candidates[t["answer"]], t["type"]) for t in data.train.targets] == expected
    said = [e.inputs["question_text"] for e in data.train]
    assert said[0] == " ".join(music_avqa.words_of(asked[0][0].text, asked[0][0].values)) + "?"


def test_frames_and_waves_come_back_as_they_were_drawn(world):
    data = ave.read(ave.Config(root=world / "AVE"))
    some = clips.localized(0, "train", np.arange(3))
    item = preprocess(data.train[2], size=32, training=True)
    assert np.abs(item["wave"].numpy().ravel() - clips.waves(some)[2]).max() < 1e-3  # half precision
    frames = item["frames"].permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(frames - clips.frames(some)[2]).mean() < 3  # JPEG
    assert (world / "AVE" / "audio" / f"{data.train[2].id}.wav").stat().st_size > 600_000


def test_a_stream_of_the_four_poses_its_problems(world):
    roots = {"ave": "AVE", "llp": "LLP", "avs_s4": "AVS", "music_avqa": "AVQA"}
    more = {"avs_s4": {"size": 32}, "music_avqa": {"vocabulary": "train"}}
    data = [{"name": name, "root": str(world / root), **more.get(name, {})} for name, root in roots.items()]
    stream = Named(place="streams", name="audio_visual", settings={"data": data}).build()
    assert [problem_of(task).kind for task in stream] == ["localize-events", "parse-video", "segment", "answer"]


def test_questions_with_words_or_answers_that_training_lacks_are_not_written(world):
    reader = music_avqa.Config(root=world / "AVQA", vocabulary="train")
    assert len(music_avqa.read(reader).test) <= 6  # it would stop at a word that it does not know


def test_classes_of_your_own_may_be_named_in_a_file_and_not_twice(tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "categories.txt").write_text("bell\nbell\n")
    with pytest.raises(DataError, match=r"categories\.txt: the class 'bell' is there twice"):
        llp.read(llp.Config(root=tmp_path))


def test_layouts_of_no_clips_are_written_too(tmp_path):
    nothing = microworld.Config(train_clips=0, validation_clips=0, test_clips=0)
    for name in ("ave", "llp", "avs", "avqa"):
        assert clip_files.WRITERS[name](tmp_path / name, nothing)


# -- micro-clap -------------------------------------------------------------------------------------------------


def test_micro_clap_hears_shapes_and_colors():
    model = clap.load(clap.Config(weights="micro-clap"))
    pairs = [(s, c) for s in range(10) for c in range(8) if c != (3 * s + 4) % 8]  # those of its pretraining
    world = scenes.of_anything(0, "sound/test", np.arange(len(pairs)), shares=(1, 0, 0))
    world.shape[:, 0], world.color[:, 0] = np.asarray(pairs).T
    waves = torch.from_numpy(sound.waves(world, np.ones((len(pairs), 3, 1), bool)))
    mel = model.log_mel(waves, seconds=10.0)
    assert mel.shape == (70, 1, 32, 32)  # one second, not repeated
    names = [f"The sounds of {scenes.COLORS[c]} {scenes.SHAPES[s]}" for s, c in pairs]
    texts = torch.nn.functional.normalize(model.encode_texts(names), dim=1)
    assert ((model.encode_audio(mel) @ texts.T).argmax(1) == torch.arange(70)).float().mean() > 0.9


def test_micro_clap_runs_block_by_block_beside_micro_clip():
    from perdure.families.audio_visual.towers import check_pair
    from perdure.models import clip

    pair = clip.load(clip.Config(weights="micro-clip")), clap.load(clap.Config(weights="micro-clap"))
    check_pair(*pair)
    assert pair[1].token_shapes == [(64, 32), (64, 32), (16, 64), (16, 64)]
