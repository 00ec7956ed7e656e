"""`perdure run`, `update` and `predict` on instructions, captions and clips: learned, judged, promoted, asked."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from perdure import checkpoint
from perdure.cli import main
from perdure.run_folder import versions
from perdure.testing.running import assert_equal_state
from tests import av_files
from tests.updating.test_updating import state

COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 180, 30), "white": (240, 240, 240)}
GATE = "retention: 100\nmean: 100\nlearned: false\nmin_learned: 0\nforms: 100\n"
pytestmark = pytest.mark.slow


@pytest.fixture
def perdure(tmp_path, monkeypatch):
    """The command, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERDURE_TOKENIZER", "fallback")  # captions are not scored by Java here
    (tmp_path / "gate.yaml").write_text(GATE)

    def call(*words, code=0):
        with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as leaving:
            main([str(word) for word in words])
        assert leaving.value.code == code, (words, said.getvalue())
        return said.getvalue()

    return call


def pictures(folder, colors, count=6):
    folder.mkdir(parents=True)
    for color in colors:
        for i in range(count):
            noise = np.random.default_rng(i).integers(-20, 20, (32, 32, 3))
            pixels = np.clip(np.array(COLORS[color]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{color}_{i}.png")
    return sorted(folder.glob("*.png"))


def same_as_at_once(perdure, run, number):
    """The version's own recipe, run from the beginning, gives its state and scores."""
    version = versions.resolve(f"{run}@{number}")
    perdure("run", version.folder / "recipe.yaml", "run.name=whole", "--quiet")
    whole, own = state(version.run.parents[1] / "whole" / "seed_0"), state(version.folder)
    assert_equal_state(own["method"], whole["method"], "another state")
    assert [row for row in own["rows"] if row["after"] == row["asked"]] == [
        row for row in whole["rows"] if row["after"] == row["asked"]
    ]


def verdict(text):
    found = json.loads(text)
    assert found["promoted"] and found["gate"]["outcome"] == "passed", found["gate"]
    return {rule["rule"]: rule for rule in found["gate"]["rules"]}


def conversations(folder, colors):
    rows = []
    for i, file in enumerate(pictures(folder, colors, count=3)):
        said = [
            {"from": "human", "value": "<image>\nWhat color is it? Answer in one word."},
            {"from": "gpt", "value": file.stem.split("_")[0]},
        ]
        rows.append({"id": str(i), "image": file.name, "conversations": said})
    (folder / "train.json").write_text(json.dumps(rows))
    asked = [
        {"question_id": row["id"], "image": row["image"], "text": "What color?", "answer": "red"} for row in rows[:2]
    ]
    (folder / "test.json").write_text(json.dumps(asked))
    return folder / "train.json"


def test_an_instruction_file_updates_a_language_model_whose_versions_hold_updates_alone(perdure, tmp_path):
    conversations(tmp_path / "first", ["red"])
    more = conversations(tmp_path / "second", ["blue", "green"])
    (tmp_path / "mine.yaml").write_text(
        f"""
stream: {{name: instruction, tasks: [{{name: reds, train: {tmp_path}/first/train.json, test: {tmp_path}/first/test.json,
  images: {tmp_path}/first}}]}}
models: {{llm: {{name: llava, weights: micro-llava, dtype: bfloat16}}}}
method:
  name: lora_sequential
  tuning: {{rank: 1, alpha: 2, lr: 0.01, batch_size: 2, max_length: 512, gradient_checkpointing: false,
    max_new_tokens: 4}}
run: {{device: cpu}}
"""
    )
    perdure("run", "mine.yaml", "--quiet")
    run = tmp_path / "runs" / "mine" / "seed_0"
    plan = json.loads(perdure("update", run, "--data", more, "--dry-run", "--json"))
    assert plan["task"]["kind"] == "instruct" and plan["examples"]["train"] + plan["examples"]["test"] == 6
    rules = verdict(perdure("update", run, "--data", more, "--gate", "gate.yaml", "--quiet", "--json"))
    assert {"retention", "forms", "min_learned"} <= rules.keys()
    own = state(versions.resolve(f"{run}@2").folder)["method"]
    assert not own["own"] and own["stacked"]  # no dense weight: the frozen model is not copied
    ranks = {len(pair["a"]) for pair in own["stacked"].values()}
    assert ranks == {2} and checkpoint.stored_bytes(own["stacked"]) < 300_000
    assert versions.resolve(run).number == 2
    answer = json.loads(perdure("predict", run, tmp_path / "second" / "blue_0.png", "--ask", "What color?", "--json"))
    assert isinstance(answer["answer"], str)
    same_as_at_once(perdure, run, 2)


def test_a_table_of_captions_updates_a_captioner(perdure, tmp_path):
    files = pictures(tmp_path / "new", ["red", "blue"])
    rows = [f'{file.name},"a {file.stem.split("_")[0]} square"' for file in files]
    (tmp_path / "new" / "captions.csv").write_text("path,caption\n" + "\n".join(rows) + "\n")
    small = [
        "stream.train.train_scenes=4",
        "stream.tests=[{name: microworld, content: captions, test_scenes: 2}]",
        "stream.names=[plain]",
        "stream.metrics=[bleu_4]",
        "method.epochs=1",
        "run.seeds=[0]",
        "run.device=cpu",
    ]
    perdure("run", "clipcap/microworld", "run.name=captions", "--quiet", *small)
    run = tmp_path / "runs" / "captions" / "seed_0"
    rules = verdict(
        perdure("update", run, "--data", tmp_path / "new" / "captions.csv", "--gate", "gate.yaml", "--quiet", "--json")
    )
    assert rules["retention"]["p"] is None and rules["retention"]["n"] == 2  # graded answers: a bootstrap
    answer = json.loads(perdure("predict", run, files[0], "--json"))
    assert isinstance(answer["caption"], str)
    assert versions.resolve(run).tasks[-1]["kind"] == "caption"
    same_as_at_once(perdure, run, 2)


def test_clips_of_another_task_update_an_audio_visual_method(perdure, tmp_path):
    av_files.ave(tmp_path / "AVE")
    av_files.llp(tmp_path / "LLP")
    small = [
        f"stream.data=[{{name: ave, root: {tmp_path}/AVE}}]",
        "method.epochs=1",
        "run.seeds=[0]",
        "run.device=cpu",
        "evaluate.start=false",
    ]
    perdure("run", "av_finetune/microworld", "run.name=clips", "--quiet", *small)
    run = tmp_path / "runs" / "clips" / "seed_0"
    data = f"{{name: llp, root: {tmp_path}/LLP}}"
    rules = verdict(perdure("update", run, "--data", data, "--gate", "gate.yaml", "--quiet", "--json"))
    assert rules["retention"]["n"] == 2
    names = [task["kind"] for task in versions.resolve(run).tasks]
    assert names == ["localize-events", "parse-video"]
    same_as_at_once(perdure, run, 2)
    task = versions.resolve(run).tasks[-1]["name"]
    lines = perdure("predict", run, tmp_path / "LLP", "--task", task, "--json").splitlines()
    assert len(lines) == 2 and all({"audio", "visual"} <= json.loads(line).keys() for line in lines)
