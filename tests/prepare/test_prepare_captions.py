"""Features made before a run, CLIPScores of saved captions, and finding one's own images by a text."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import tiny_clip

from perdure.cli import _find, main
from perdure.errors import DataError
from perdure.families.captioning.features import stored
from perdure.metrics import captioning
from perdure.models import clip
from perdure.prepare import captions
from perdure.types import Dataset, Example, Examples


@pytest.fixture
def world(tmp_path):
    """A CLIP, and five pictures with two captions each."""
    model = clip.load(clip.Config(weights=str(tiny_clip(tmp_path / "clip", context=24))))
    made = []
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        made.append(
            Example(
                id=f"{i}.png", inputs={"image": tmp_path / f"{i}.png"}, target=[f"a cat {i}", "dog " * (1 + 20 * i)]
            )
        )
    return tmp_path, model, Dataset(name="d", kind="caption", train=Examples.of(made))


def test_features_are_written_once_and_read_by_name(world):
    folder, model, data = world
    counts = captions.write_features(data, model, folder / "f.safetensors")
    assert counts == {"images": 5, "captions": 10, "cut": 3}
    rows = stored(folder / "f.safetensors", "images", ["3.png", "1.png"])
    alone = captions.encode_images(model, iter([folder / "3.png"]), where=["3"])
    torch.testing.assert_close(rows[:1], alone, rtol=1e-5, atol=1e-5)
    with pytest.raises(DataError, match=r"1 of 2 images have no features, first 'gone\.png'"):
        stored(folder / "f.safetensors", "images", ["3.png", "gone.png"])
    captions.write_features(data, model, folder / "t.safetensors", images=False)
    with pytest.raises(DataError, match="no features of images"):
        stored(folder / "t.safetensors", "images", ["3.png"])


def test_clipscores_are_added_to_saved_captions(world):
    folder, model, _ = world
    rows = [{"id": f"{i}.png", "image_id": i, "caption": "a cat", "references": ["a dog", "a cat"]} for i in range(3)]
    (folder / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    means = captions.score_file(folder / "p.jsonl", folder, model, folder / "q.jsonl")
    added = [json.loads(line) for line in (folder / "q.jsonl").read_text().splitlines()]
    assert captioning.clipscore(added) == pytest.approx(means["clipscore"])
    # The caption is one of its references, so that the other part of the harmonic mean is 1.
    for row in added:
        s = row["clipscore"]
        assert row["refclipscore"] == pytest.approx(2 * s / (1 + s), abs=1e-6)
    (folder / "bad.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(DataError, match="no records of captions"):
        captions.score_file(folder / "bad.jsonl", folder, model, folder / "q.jsonl")


def test_saved_captions_become_files_of_the_coco_evaluation(tmp_path):
    rows = [
        {"id": f"{i}.jpg", "image_id": 40 + i, "caption": "a cat", "references": ["a dog", "a cat"]} for i in (0, 1)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    results, annotations = captions.write_coco(tmp_path / "p.jsonl", tmp_path / "coco")
    assert json.loads(results.read_text()) == [{"image_id": 40 + i, "caption": "a cat"} for i in (0, 1)]
    tools = pytest.importorskip("pycocotools.coco")
    truth = tools.COCO(str(annotations))
    assert [a["caption"] for a in truth.loadAnns(truth.getAnnIds(imgIds=[41]))] == ["a dog", "a cat"]
    assert sorted(truth.loadRes(str(results)).getImgIds()) == [40, 41]
    (tmp_path / "p.jsonl").write_text((json.dumps(rows[0]) + "\n") * 2)
    with pytest.raises(DataError, match="image 40 is described twice"):
        captions.write_coco(tmp_path / "p.jsonl", tmp_path / "coco")


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def test_the_commands_say_what_they_did(world, capsys):
    folder, _, _ = world
    given = ["--weights", folder / "clip", "--device", "cpu", "--out", folder / "f.safetensors", "--texts-only"]
    (folder / "lines.tsv").write_text("A\ta cat\nB\t" + "dog " * 60 + "\n")
    asked = ["prepare", "features", "--data", "caption_texts", "--root", folder / "lines.tsv", *given]
    code, _, err = command(capsys, *asked)
    assert code == 2 and "set `column`" in err
    code, out, _ = command(capsys, *asked, "--set", "column=2")
    assert code == 0 and out.startswith("0 images, 2 captions (1 captions were too long and were cut) -> ")
    models = [part for role in ("policy", "reward") for part in ("--model", f"{role}={folder / 'clip'}")]
    pictures = [folder / f"{i}.png" for i in range(3)]
    asked = ["predict", "--find", "a cat", *models, "--set", "steps=1", "--top", "2", "--device", "cpu"]
    code, out, _ = command(capsys, *asked, *pictures)
    assert code == 0 and len(out.splitlines()) == 2 and all("before adapting" in line for line in out.splitlines())
    code, _, err = command(capsys, *asked, folder / "nowhere")
    assert code in (1, 2) and "Traceback" not in err and "nowhere" in err


def test_own_images_are_found_by_a_text_and_a_broken_one_is_named(world):
    folder, _, _ = world
    (folder / "broken.png").write_bytes(b"no picture")
    files = [*(folder / f"{i}.png" for i in range(5)), folder / "broken.png"]
    models = [f"{role}={folder / 'clip'}" for role in ("policy", "reward")]
    rows, broken = _find.find("a cat", files, models=models, settings=["lr=1e-3", "steps=2"], top=3, device="cpu")
    assert len(rows) == 3 and rows[0]["score"] >= rows[1]["score"] and {r["before"] for r in rows} <= {1, 2, 3, 4, 5}
    assert list(broken) == [str(folder / "broken.png")]
    assert len(_find.show(rows, form="csv").splitlines()) == 4 and json.loads(_find.show(rows[:1], form="json"))
    with pytest.raises(DataError, match="the text is empty"):
        _find.find(" ", files, models=models, settings=[], top=1, device="cpu")
