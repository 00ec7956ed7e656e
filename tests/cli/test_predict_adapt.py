"""`perdure predict --method`: own images, before and after, as text, JSON, CSV and a page; and what is refused."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from perdure.cli import main

MODELS = ["--model", "policy=micro-clip", "--model", "reward=micro-clip"]
QUICK = ["--set", "views=4", "--set", "selection=0.5", "--set", "samples=2", "--set", "steps=1", "--device", "cpu"]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for i, color in enumerate(((200, 30, 30), (30, 30, 200))):
        pixels = np.full((40, 50, 3), 255, np.uint8)
        pixels[10:30, 15:35] = color
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main(["predict", *map(str, arguments)])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def test_each_image_is_answered_before_and_after_with_the_reward(capsys, pictures, tmp_path):
    page = tmp_path / "page.html"
    given = ["--method", "rlcf_encoder", "--classes", 'solid square,"crane, bird",solid circle', "--html", page]
    code, out, err = command(capsys, *given, *MODELS, *QUICK, "--json", "--top", 5, pictures)
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["file"] for row in rows] == [str(pictures / "0.png"), str(pictures / "1.png")]
    for row in rows:
        for part in ("before", "after", "reward"):
            values = [answer["value"] for answer in row[part]]
            assert {a["class"] for a in row[part]} == {"solid square", "crane, bird", "solid circle"}
            assert values == sorted(values, reverse=True)
        assert sum(a["value"] for a in row["after"]) == pytest.approx(1, abs=1e-3)
        assert all(0 <= a["value"] <= 2.5 for a in row["reward"])
    text = page.read_text()
    assert text.count("<article") == 2 and "crane, bird" in text and "http" not in text


def test_csv_quotes_names_with_commas(capsys, pictures):
    given = ["--method", "tpt_prompt", "--classes", '"crane, bird","dog, cat"', "--model", "policy=micro-clip", "--csv"]
    quick = ["--set", "views=4", "--set", "selection=0.5", "--device", "cpu"]
    code, out, _ = command(capsys, *given, *quick, pictures / "0.png")
    assert code == 0
    rows = list(csv.reader(out.splitlines()))
    assert rows[0] == ["file", "when", "rank", "class", "value"]
    assert {row[1] for row in rows[1:]} == {"before", "after"}  # no reward model, no reward
    assert {row[3] for row in rows[1:]} <= {"crane, bird", "dog, cat"}


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_answered(capsys, pictures):
    (pictures / "broken.png").write_bytes(b"no image")
    given = ["--method", "rlcf_prompt", "--classes", "solid square,solid circle"]
    code, out, err = command(capsys, *given, *MODELS, *QUICK, pictures)
    assert code == 1 and len(out.splitlines()) == 2 and "broken.png: this is not an image" in err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--method", "mg_clip", "--classes", "a,b"], "does not adapt to single images"),
        (["--method", "rlcf_prompt", "--classes", "a"], "two names or more"),
        (["--method", "rlcf_prompt", "--classes", "a,a"], "'a' is there twice"),
        (["--method", "rlcf_prompt", "--classes", "@nowhere.txt"], "no such file"),
        (["--method", "rlcf_prompt", "--classes", "a,b", "--set", "stepz=2"], "did you mean `steps`"),
        (["--method", "rlcf_prompt", "--classes", "a,b", "--model", "policy"], "ROLE=WEIGHTS"),
        (["--method", "rlcf_prompt", "--classes", "a,b", *MODELS], "Set method.samples=2"),
        (["--method", "rlcf_prompt", "--classes", "a,b", "--set", "views=4"], "less than one view"),
        (["--method", "rlcf_prompt", "--classes", "a,b", "--model", "policy=no-such-clip"], "embedded model"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(capsys, pictures, given, said):
    code, out, err = command(capsys, *given, pictures)
    assert code == 2 and said in err and not out and "Traceback" not in err


def test_an_empty_folder_holds_no_image(capsys, tmp_path):
    code, _, err = command(capsys, "--method", "rlcf_prompt", "--classes", "a,b", tmp_path)
    assert code == 2 and "no image there" in err
