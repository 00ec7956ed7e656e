"""A run of instruction tuning on a family other than LLaVA as a user has it: checked, run, asked, served, exported."""

import base64
import io
import json
import re
import subprocess
import sys

import pytest
from PIL import Image

import perdure
from perdure.cli import main
from perdure.evaluate import read_records
from perdure.serving.app import Settings, make
from tests import served, test_videos, tiny_vlm

RECIPE = """
stream: {{name: instruction, root: {root}, tasks: [{{name: things}}, {{name: more}}]}}
models: {{llm: {{name: vlm, weights: {weights}, dtype: float32}}}}
method: {{name: sefe, tuning: {{rank: 2, alpha: 4, lr: 0.005, batch_size: 2, max_new_tokens: 6, generate_batch: 4}}}}
evaluate: {{batch_size: 4}}
run: {{device: cpu, out: {root}/runs}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, vlm_root):
    """Two tasks in LLaVA's layout; every second record has two images, the last a video: a folder of two frames."""
    root = tmp_path_factory.mktemp("vlm_run")
    for task in ("things", "more"):
        folder = root / "annotations" / task
        folder.mkdir(parents=True)
        train, test = [], []
        for i in range(4):
            names = [f"{task}_{i}_{j}.png" for j in range(1 + i % 2)]
            for j, name in enumerate(names):
                Image.fromarray(tiny_vlm.picture(2 * i + j, 20 + i, 40)).save(root / name)
            if i == 3:
                (root / f"{task}_film").mkdir()
                for j, name in enumerate(names):
                    (root / name).rename(root / f"{task}_film" / f"{j}.png")
            shown = {"video": f"{task}_film"} if i == 3 else {"image": names if len(names) > 1 else names[0]}
            marks = "<video>" if i == 3 else "<image>" * len(names)
            said = [
                ("human", f"{marks}\nWhat is it?"),
                ("gpt", f"thing {i}, as long as it takes " * 4),
            ]
            said = [{"from": who, "value": text.strip(" ")} for who, text in said]
            train.append({"id": i, **shown, "conversations": said})
            test.append({"question_id": i, **shown, "text": "What is it?", "answer": f"thing {i}"})
        (folder / "train.json").write_text(json.dumps(train))
        (folder / "test.json").write_text(json.dumps(test))
    file = root / "mine.yaml"
    file.write_text(RECIPE.format(root=root, weights=tiny_vlm.folder(vlm_root, "internvl")))
    return file


@pytest.fixture(scope="module")
def run(recipe):
    return perdure.run(recipe, quiet=True)[0].folder


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    return leaving.value.code, *capsys.readouterr()


def test_what_is_learned_is_shown_within_eighty_columns(capsys, recipe, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = command(capsys, "check", recipe, "--tokens")
    shown = out[out.index("\nthings, things/train/0: ") :].splitlines()
    assert code == 0
    assert all(len(line) <= 80 for line in shown)
    assert "tokens, 12 of images, " in shown[1]
    assert "  [image: 12 tokens]" in shown
    marked = [line.removeprefix("> ") for line in shown[: shown.index("", 1)] if line.startswith("> ")]
    assert "".join(marked) == ("thing 0, as long as it takes " * 4).strip() + "<|im_end|>"


def test_a_videos_tokens_are_shown_as_what_is_seen(capsys, recipe):
    folder = recipe.parent / "annotations" / "films"
    folder.mkdir()
    things = recipe.parent / "annotations" / "things"
    for name in ("train.json", "test.json"):
        (folder / name).write_text(json.dumps(json.loads((things / name).read_text())[3:]))
    code, out, _ = command(capsys, "check", recipe, "--tokens", "stream.tasks=[{name: films}]")
    assert code == 0
    assert "films, films/train/3: " in out
    assert re.search(r"tokens, [1-9]\d* of images, ", out)
    assert "<video>" not in out[out.index("films, films/train/3") :]


def test_it_names_a_recipe_without_a_language_model(capsys):
    code, _, err = command(capsys, "check", "finetune/microworld", "--tokens")
    assert code == 2
    assert "reads no conversations" in err


def test_run_is_asked_by_the_command_from_the_keyboard_and_over_http(capsys, recipe, run, monkeypatch):
    picture = recipe.parent / "things_0_0.png"
    code, out, _ = command(capsys, "predict", run, picture, "--ask", "What is it?", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["question"] == "What is it?"
    both = [recipe.parent / f"things_1_{j}.png" for j in range(2)]
    code, out, _ = command(capsys, "predict", run, *both, "--together", "--ask", "<image> or <image>?", "--json")
    assert code == 0
    assert json.loads(out)["file"] == " ".join(map(str, both))
    monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\nAnd why?\n\n"))
    code, out, _ = command(capsys, "predict", run, picture, "--json")
    typed = [json.loads(line) for line in out.splitlines()]
    assert [one["question"] for one in typed] == ["What is it?", "And why?"]
    assert typed[0]["answer"] == told["answer"]
    with served.serving(make(run, Settings())) as client:
        status, body = client.form(("file", picture.read_bytes()), ("ask", "What is it?"))
        assert status == 200
        assert body["predictions"][0]["answer"] == told["answer"]
        status, body = client.json({"text": "What is two and two?"})
        assert status == 200
        assert "answer" in body["predictions"][0]


def test_run_is_asked_about_videos(capsys, recipe, run, tmp_path):
    film = recipe.parent / "things_film"
    code, out, _ = command(capsys, "predict", run, film, "--frames", "--ask", "What is it?", "--json")
    assert code == 0
    by_frames = json.loads(out)
    assert by_frames["file"] == " ".join(str(film / f"{j}.png") for j in range(2))
    (record,) = [r for r in read_records(run / "predictions" / "1_0.jsonl") if r["id"] == "things/test/3"]
    assert record["has_image"]
    assert by_frames["answer"] == record["prediction"]
    assert perdure.predict(run, [{"video": film, "text": "What is it?"}])[0]["answer"] == record["prediction"]
    code, out, _ = command(
        capsys, "predict", run, test_videos.film(tmp_path / "clip.mp4"), "--ask", "What is it?", "--json"
    )
    assert code == 0
    assert json.loads(out)["question"] == "What is it?"
    code, _, err = command(capsys, "predict", run, film, "--frames", "--together", "--ask", "What?")
    assert code == 2
    assert "--together is said, too" in err
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    code, _, err = command(capsys, "predict", run, broken, "--ask", "What?")
    assert code == 1
    assert "the video cannot be read" in err


def test_a_conversation_is_kept_turn_by_turn(capsys, recipe, run, monkeypatch):
    one, other = (recipe.parent / f"things_1_{j}.png" for j in range(2))
    typed = f"What is it?\nAnd why?\n/image {other}\nIs it like this?\n/reset\nAnd why?\n\nnot read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    code, out, _ = command(capsys, "chat", run, one)
    assert code == 0
    answers = out.splitlines()

    def told(text, *said, images=(one,)):
        turns = [{"from": who, "value": t} for who, t in zip(("human", "gpt") * 9, said)]
        return perdure.predict(run, [{"image": list(images), "text": text, "said": turns}])[0]["answer"]

    first = ("<image>\nWhat is it?", answers[0])
    second = ("And why?", answers[1])
    assert answers[0] == told(first[0])
    assert answers[1] == told("And why?", *first)
    assert answers[2] == told("<image>\nIs it like this?", *first, *second, images=(one, other))
    assert answers[3] == told("<image>\nAnd why?")
    assert len(answers) == 4


def test_conversations_over_http_in_openais_form_are_those_of_the_command(recipe, run):
    pictures = [recipe.parent / f"things_1_{j}.png" for j in range(2)]

    def shown(picture):
        data = base64.b64encode(picture.read_bytes()).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    def said(role, *parts):
        return {"role": role, "content": [p if isinstance(p, dict) else {"type": "text", "text": p} for p in parts]}

    talk = [
        said("user", shown(pictures[0]), "What is it?"),
        said("assistant", "a thing"),
        said("user", shown(pictures[1]), "Like this?"),
    ]
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a thing"}]
    given = {"image": pictures, "text": "<image>\nLike this?", "said": turns}
    with served.serving(make(run, Settings())) as client:
        status, body = client.json({"messages": talk}, "/v1/chat/completions")
        assert status == 200
        assert body["choices"][0]["message"]["content"] == perdure.predict(run, [given])[0]["answer"]
        both = [said("user", *(shown(picture) for picture in pictures), "Alike?")]
        status, body = client.json({"messages": both}, "/v1/chat/completions")
        own = perdure.predict(run, [{"image": pictures, "text": "<image><image>\nAlike?"}])[0]["answer"]
        assert status == 200
        assert body["choices"][0]["message"]["content"] == own
        status, body = client.json({"messages": [talk[0], talk[2]]}, "/v1/chat/completions")
        assert status == 400
        assert "turns of user and assistant" in body["error"]["message"]
        broken = said("user", {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "What?")
        status, body = client.json({"messages": [*talk[:2], broken]}, "/v1/chat/completions")
        assert status == 400


def test_what_a_conversation_cannot_be_about_is_said(capsys, recipe, run, monkeypatch):
    picture, film = recipe.parent / "things_0_0.png", recipe.parent / "film.mp4"
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\n/image no.png\n/image film.mp4\nAnd?\n"))
    code, out, err = command(capsys, "chat", run, picture)
    assert code == 0
    assert len(out.splitlines()) == 2
    assert err.count("there is no such file") == 2
    film.write_bytes(b"")
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\n"))
    code, _, err = command(capsys, "chat", run, picture, film)
    assert code == 2
    assert "a conversation shows pictures, or one video" in err


@pytest.mark.slow
def test_exports_lines_answer_where_perdure_is_not_there(capsys, recipe, run, tmp_path):
    picture = recipe.parent / "things_0_0.png"
    code, lines, _ = command(capsys, "export", run, tmp_path / "model")
    assert code == 0
    Image.open(picture).save(tmp_path / "picture.jpg")
    _, out, _ = command(capsys, "predict", run, tmp_path / "picture.jpg", "--ask", "What is this?", "--json")
    code = "import sys; sys.modules['perdure'] = None\n" + lines[lines.index("from PIL") :]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=tmp_path, check=True)
    assert done.stdout.strip() == json.loads(out)["answer"]
