"""The readers of audio-visual data: published layouts, the real annotation files, and damaged ones."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
from pathlib import Path

import av_files
import numpy as np
import pytest

from perdure.data import ave, avs_s4, clip_folder, llp, music_avqa
from perdure.data.clips import PackedWave
from perdure.errors import DataError, UnreadableExample
from perdure.families.audio_visual.inputs import preprocess

PACK = Path(__file__).resolve().parents[3] / "shared" / "data" / "av_annotations"


def test_ave_labels_each_second_between_start_and_end(tmp_path):
    data = ave.read(ave.Config(root=av_files.ave(tmp_path / "AVE")))
    assert (len(data.candidates), data.candidates[28]) == (29, "background")
    assert [e.id for e in data.train] == ["ave_0", "ave_2"]
    assert data.train.targets[0] == [28, 28, 2, 2, 2, 28, 28, 28, 28, 28]
    assert data.test.targets[1] == [2] * 10
    example = data.train[0]
    assert example.inputs["frames"][0].name == "00000001.jpg" and len(example.inputs["frames"]) == 10
    batch = preprocess(example, size=16, training=True)
    assert batch["frames"].shape == (10, 3, 16, 16) and batch["wave"].shape == (10, 32000)


def test_ave_takes_stored_labels_where_they_are(tmp_path):
    data = ave.read(ave.Config(root=av_files.ave(tmp_path / "AVE", stored_labels=True)))
    assert data.train.targets[0] == [2] + [28] * 9


def test_ave_of_one_domain(tmp_path):
    root = av_files.ave(tmp_path / "AVE")
    data = ave.read(ave.Config(root=root, domain="vehicle sounds"))
    assert [e.id for e in data.train] == ["ave_2"]


def test_a_missing_video_stops_or_is_left_out(tmp_path):
    root = av_files.ave(tmp_path / "AVE")
    shutil.rmtree(root / "frames" / "ave_2")
    with pytest.raises(DataError, match="1 of 2 annotated clips lack frames or sound, first ave_2"):
        ave.read(ave.Config(root=root))
    data = ave.read(ave.Config(root=root, on_missing="skip"))
    assert len(data.train) == 1 and data.facts["left_out"]["train"] == 1


def test_ave_names_the_line_of_an_unknown_class(tmp_path):
    root = av_files.ave(tmp_path / "AVE")
    file = root / "labels" / "Annotations.txt"
    file.write_text(file.read_text().replace("Truck&ave_2", "Truk&ave_2"))
    with pytest.raises(DataError, match=r"Annotations.txt, line 4: there is no class 'Truk'"):
        ave.read(ave.Config(root=root))


def test_ave_follows_the_order_of_columns_that_the_head_gives(tmp_path):
    file = av_files.ave(tmp_path) / "labels" / "Annotations.txt"
    rows = [line.split("&") for line in file.read_text().splitlines()]
    expected = ave._annotations(file, ["Bark", "Truck"])
    file.write_text("\n".join("&".join([r[1], r[4], r[0], r[2], r[3]]) for r in rows), encoding="utf-8-sig")
    assert ave._annotations(file, ["Bark", "Truck"]) == expected and len(expected) == 4


def test_llp_refuses_two_videos_whose_names_give_the_same_clip(tmp_path):
    root = av_files.llp(tmp_path)
    with (root / "labels" / "AVVP_train.csv").open("a") as file:
        file.write("AAAAAAAAAAA_20_30\tCar\n")
    with pytest.raises(DataError, match="AAAAAAAAAAA_0_10 and AAAAAAAAAAA_20_30 have the same clip AAAAAAAAAAA"):
        llp.read(llp.Config(root=root))


def test_llp_gives_labels_for_training_and_times_for_testing(tmp_path):
    data = llp.read(llp.Config(root=av_files.llp(tmp_path / "LLP")))
    speech, dog, car = (data.candidates.index(name) for name in ("Speech", "Dog", "Car"))
    assert data.train.targets == [{"labels": [speech, dog]}, {"labels": [car]}]
    assert data.test.targets[0]["audio"] == [[speech, 0, 4]] and data.test.targets[0]["visual"] == [[dog, 0, 10]]
    assert data.test.targets[1] == {"labels": [car], "audio": [[car, 8, 10]], "visual": []}


def test_llp_lists_a_video_once_a_label_as_published_on_demand(tmp_path):
    data = llp.read(llp.Config(root=av_files.llp(tmp_path / "LLP"), official_duplicates=True))
    assert [e.id for e in data.test] == ["AAAAAAAAAAA_0_10", "AAAAAAAAAAA_0_10#2", "BBBBBBBBBBB_5_15"]


def test_music_avqa_numbers_words_and_answers_as_published(tmp_path):
    data = music_avqa.read(music_avqa.Config(root=av_files.music_avqa(tmp_path / "AVQA")))
    words = data.facts["vocabulary"]
    assert len(words) == 93 and len(data.candidates) == 42
    asked = data.train[0].inputs["question"]
    assert [words[i] for i in asked[:8]] == ["Is", "the", "violin", "in", "the", "video", "always", "playing"]
    assert asked[8:] == [0] * 6
    assert data.train.targets[0] == {
        "answer": data.candidates.index("no"),
        "type": ["Audio-Visual", "Existential"],
    }


def test_music_avqa_can_number_the_training_questions_own_words(tmp_path):
    config = music_avqa.Config(root=av_files.music_avqa(tmp_path / "AVQA"), vocabulary="train")
    data = music_avqa.read(config)
    assert data.facts["vocabulary"][:4] == ["<pad>", "Is", "the", "violin"]
    assert data.candidates == ("no", "two")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "How many zithers?"}, "the word 'zithers' is not in the vocabulary"),
        ({"answer": "forty"}, "the answer 'forty' is not among the 42 answers"),
        ({"text": " ".join(["How"] * 15) + "?"}, "a question of 15 words"),
    ],
)
def test_questions_outside_the_vocabulary_are_named(tmp_path, change, message):
    row = {"text": "How many instruments?", "kind": ("Audio", "Counting"), "answer": "two"} | change
    root = av_files.music_avqa(tmp_path / "AVQA", extra=[av_files.question("00000093", 7, **row)])
    with pytest.raises(DataError, match=message) as raised:
        music_avqa.read(music_avqa.Config(root=root))
    assert "question 7" in str(raised.value)


@pytest.mark.parametrize("packed", [False, True])
def test_avs_reads_frames_masks_and_either_form_of_sound(tmp_path, packed):
    data = avs_s4.read(avs_s4.Config(root=av_files.avs_s4(tmp_path / "s4", packed=packed), size=16))
    assert data.candidates == ("dog_barking", "race_car")
    assert [len(part.targets[0]) for part in (data.train, data.validation, data.test)] == [1, 5, 5]
    batch = preprocess(data.train[0], size=16, training=True)
    assert batch["wave"].shape == (5, 32000)
    assert batch["mask"].float().mean() == 0.5


def test_a_packed_wave_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    file = tmp_path / "AVS.npy"
    np.save(file, np.array({"a": Evil()}, dtype=object))
    with pytest.raises(UnreadableExample, match=r"asks for builtins\.print, .* nothing of it was run"):
        np.asarray(PackedWave(file, "a"))
    file.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnreadableExample):
        np.asarray(PackedWave(file, "a"))


def test_your_own_folders_of_clips(tmp_path):
    for name in ("guitar", "piano"):
        for i in range(5):
            av_files.clip(tmp_path, f"{name}/{i}", seconds=3)
    data = clip_folder.read(clip_folder.Config(root=tmp_path, segments=3))
    assert data.kind == "classify" and data.candidates == ("guitar", "piano")
    assert len(data.train) == 8 and len(data.test) == 2
    batch = preprocess(data.test[0], size=8, training=False)
    assert batch["frames"].shape == (3, 3, 8, 8) and batch["label"] == 0


def test_a_wave_of_another_length_and_a_missing_frame_are_refused(tmp_path):
    data = ave.read(ave.Config(root=av_files.ave(tmp_path / "AVE")))
    wave = data.train[0].inputs["wave"]
    np.save(wave, np.zeros(90000, dtype=np.float32))
    with pytest.raises(UnreadableExample, match="the wave has 90000 samples, the video 10 frames"):
        preprocess(data.train[0], size=16, training=True)
    np.save(wave, np.full(320000, np.nan, dtype=np.float32))
    with pytest.raises(UnreadableExample, match="not numbers"):
        preprocess(data.train[0], size=16, training=True)
    data.train[0].inputs["frames"][9].unlink()
    with pytest.raises(UnreadableExample, match="no such file"):
        preprocess(data.train[0], size=16, training=True)


# -- the real annotation files ------------------------------------------------------------------------------


@pytest.fixture
def pack() -> Path:
    if not PACK.is_dir():
        pytest.skip("the pack of audio-visual annotations is not here")
    return PACK


def test_the_real_annotations_of_ave(pack, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    shutil.copy(pack / "AVE_Annotations.txt", labels / "Annotations.txt")
    for split in ("train", "val", "test"):
        shutil.copy(pack / f"AVE_{split}_order.h5", labels / f"{split}_order.h5")
    names = ave.read(ave.Config(root=tmp_path, on_missing="skip")).candidates
    rows = ave._annotations(labels / "Annotations.txt", list(names[:28]))
    assert len(rows) == 4143 and len({row["id"] for row in rows}) == 4097
    for row in rows:
        (tmp_path / "frames" / row["id"]).mkdir(parents=True, exist_ok=True)
    (tmp_path / "wave").mkdir()
    for row in rows:
        (tmp_path / "wave" / f"{row['id']}.npy").touch()
    data = ave.read(ave.Config(root=tmp_path))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [3339, 402, 402]
    assert {label for target in data.train.targets for label in target} == set(range(29))
    assert len({e.id for e in data.train}) == 3339


def test_the_real_annotations_of_llp(pack, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    for name in ("AVVP_train", "AVVP_val_pd", "AVVP_test_pd", "AVVP_eval_audio", "AVVP_eval_visual"):
        (labels / f"{name}.csv").write_bytes(gzip.decompress((pack / f"LLP_{name}.csv.gz").read_bytes()))
    (tmp_path / "wave").mkdir()
    for file in ("AVVP_train", "AVVP_val_pd", "AVVP_test_pd"):
        for line in (labels / f"{file}.csv").read_text().splitlines()[1:]:
            (tmp_path / "frames" / line[:11]).mkdir(parents=True, exist_ok=True)
            (tmp_path / "wave" / f"{line[:11]}.npy").touch()
    data = llp.read(llp.Config(root=tmp_path))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [10000, 649, 1200]
    listed = llp.read(llp.Config(root=tmp_path, official_duplicates=True))
    assert (len(listed.train), len(listed.test)) == (16057, 2179)
    tables = {m: llp._times(labels / f"AVVP_eval_{m}.csv", list(data.candidates)) for m in ("audio", "visual")}
    assert {m: sum(map(len, table.values())) for m, table in tables.items()} == {"audio": 4131, "visual": 2495}
    timed = [t for part in (data.validation, data.test) for t in part.targets]
    listed_rows = sum(len(t["audio"]) for t in timed)
    assert listed_rows == 4131 - data.facts["times_without_video"]["audio"] == 4117


def test_the_real_annotations_of_music_avqa(pack, tmp_path):
    folder = tmp_path / "labels" / "json"
    folder.mkdir(parents=True)
    for name, source in (("val", "update_avqa-val"), ("test", "update_avqa-test"), ("train", "avqa-train_fake")):
        (folder / f"avqa-{name}.json").write_bytes(gzip.decompress((pack / f"MUSICAVQA_{source}.json.gz").read_bytes()))
    test = music_avqa.read_records(folder / "avqa-test.json")
    words, answers = music_avqa.vocabulary("published", [], where="")
    # The updated files of the authors; the first release has 9185 and 4595 questions.
    assert len(test) == 9129 and len(music_avqa.read_records(folder / "avqa-val.json")) == 4568
    for row in [*test, *music_avqa.read_records(folder / "avqa-val.json")]:
        item = music_avqa.item(row, words, answers, where="test")
        assert len(dict(item.more)["question"]) == 14
    kinds = {tuple(row["type"]) for row in test}
    from perdure.metrics.audio_visual import TYPES

    assert kinds == {(modality, kind) for modality, names in TYPES.items() for kind in names}
    assert json.loads((folder / "avqa-train.json").read_text())
