"""predict answers for a user's files; export loads, and answers the same, where perdure is not installed."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from perdure import api, checkpoint, recipe
from perdure.cli import main
from perdure.loop import checkpoint_file
from perdure.methods.mg_clip import MgClip

pytestmark = pytest.mark.slow
SMALL = ("stream.train_per_class=4", "stream.test_per_class=2", "run.seeds=[0]", "stream.step=20")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of MG-CLIP on 40 classes in two tasks."""
    out = tmp_path_factory.mktemp("runs")
    asked = recipe.load("mg_clip/microworld", [*SMALL, "method.epochs=1", f"run.out={out}"])
    return api.execute(asked, quiet=True)[0].folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with three images of microworld and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    asked = recipe.load("mg_clip/microworld", SMALL)
    for i, example in enumerate(recipe.build_stream(asked).tasks[0].test[:3]):
        Image.fromarray(example.inputs["image"]).save(folder / f"{i}.png")
    Image.open(folder / "0.png").convert("L").save(folder / "3.pgm")  # a suffix that training reads, too
    (folder / "broken.png").write_bytes(b"not an image")
    return folder


def perdure(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    return leaving.value.code, *capsys.readouterr()


def test_predict_answers_readable_files_names_the_others_and_exits_1(run, pictures, capsys):
    code, out, err = perdure(capsys, "predict", run, pictures, "--top", "2", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "2.png", "3.pgm"]
    assert all(len(row["answers"]) == 2 for row in rows)
    assert all(1 >= row["answers"][0]["probability"] >= row["answers"][1]["probability"] for row in rows)
    assert code == 1
    assert "broken.png" in err
    assert "Traceback" not in err


def test_predict_answers_in_the_precision_that_the_run_was_tested_in(run, pictures, capsys, tmp_path, monkeypatch):
    half = tmp_path / "half"
    shutil.copytree(run, half)
    (half / "recipe.yaml").write_text(recipe.to_yaml(recipe.load(run / "recipe.yaml", ["run.precision=bf16"])))
    seen = []
    made = MgClip.predictor

    def watched(self, query):
        predict = made(self, query)
        return lambda batch: (seen.append(torch.is_autocast_enabled("cpu")), predict(batch))[1]

    monkeypatch.setattr(MgClip, "predictor", watched)
    for folder, expected in ((run, False), (half, True)):
        assert perdure(capsys, "predict", folder, pictures / "0.png")[0] == 0
        assert seen.pop() is expected


def test_predict_on_a_device_without_enough_memory_says_what_to_do(run, pictures, capsys, monkeypatch):
    def exhausted(batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(MgClip, "predictor", lambda self, query: exhausted)
    code, _, err = perdure(capsys, "predict", run, pictures, "--device", "cpu")
    assert code == 2 and "too little memory for stage predict, batches of" in err and "Name fewer files" in err


def test_predict_writes_csv(run, pictures, capsys):
    code, out, _ = perdure(capsys, "predict", run, pictures / "0.png", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [row["rank"] for row in rows] == ["1"]
    assert rows[0]["calibrated"] == "true"
    assert re.fullmatch(r"[01]\.\d{4}", rows[0]["probability"])


def test_answers_are_probabilities_in_the_order_of_the_method_and_may_be_unknown(run, pictures, capsys):
    one = pictures / "0.png"
    answers = json.loads(perdure(capsys, "predict", run, one, "--top", "40", "--json")[1])["answers"]
    assert sum(a["probability"] for a in answers) == pytest.approx(1, abs=1e-2)
    opened = api.reopen(run, device="cpu")
    pixels = opened.models["clip"].transform.pixels(one)[None]
    with torch.no_grad():
        scores = opened.method.predictor(opened.query)({"image": pixels})
    ranked = scores[0].argsort(descending=True).tolist()
    assert [a["class"] for a in answers] == [opened.query.candidates[i] for i in ranked]
    assert scores.max() < 0.1 < answers[0]["probability"]  # a fortieth and little more, whatever the method is sure of
    sure = answers[0]["probability"]
    _, out, _ = perdure(capsys, "predict", run, one)
    assert out == f"{one}  {answers[0]['class']} ({sure:.4f})\n"
    assert "  unknown: " in perdure(capsys, "predict", run, one, "--unknown-below", "1")[1]
    assert (
        json.loads(perdure(capsys, "predict", run, one, "--json", "--unknown-below", sure / 2)[1])["unknown"] is False
    )


def test_probabilities_say_whether_they_are_calibrated(run, pictures, tmp_path, capsys):
    one = pictures / "0.png"
    code, out, err = perdure(capsys, "predict", run, one, "--json", "--top", "2")
    assert code == 0 and "probabilities are calibrated on validation images" in err
    softer = json.loads(out)
    plain = tmp_path / "plain"
    shutil.copytree(run, plain)
    temperature = json.loads((plain / "calibration.json").read_text())["temperature"]
    (plain / "calibration.json").unlink()
    code, out, err = perdure(capsys, "predict", plain, one, "--json", "--top", "2")
    assert code == 0 and "probabilities are not calibrated (no validation images)" in err
    asis = json.loads(out)
    assert (softer["calibrated"], asis["calibrated"]) == (True, False)
    opened = api.reopen(plain, device="cpu")
    with torch.no_grad():
        scores = opened.method.predictor(opened.query)({"image": opened.models["clip"].transform.pixels(one)[None]})
    logits = opened.method.logits_of(scores)
    for row, divisor in ((softer, temperature), (asis, 1)):
        expected = (logits / divisor).softmax(1).max().item()
        assert row["answers"][0]["probability"] == pytest.approx(expected, abs=1e-4)
    (plain / "calibration.json").write_text('{"temperature": -1, "n": 3}')
    code, _, err = perdure(capsys, "predict", plain, one)
    assert code == 2 and "calibration.json: temperature: found -1" in err


def test_an_unfinished_run_answers_and_says_so(run, pictures, tmp_path, capsys):
    assert "unfinished" not in perdure(capsys, "predict", run, pictures / "0.png")[2]
    shutil.copytree(run, tmp_path / "half")
    file = checkpoint_file(tmp_path / "half")
    state = checkpoint.load(file)
    checkpoint.save(
        file, state | {"task": 0, "query": state["query"] | {"candidates": state["query"]["candidates"][:20]}}
    )
    code, _, err = perdure(capsys, "predict", tmp_path / "half", pictures / "0.png")
    assert code == 0
    assert "unfinished, 1 of 2 tasks; answers are among 20 classes" in err
    assert "not calibrated" in err, "the temperature is that of the whole run"


def test_scores_that_are_no_logits_are_called_scores(run, pictures, capsys, monkeypatch):
    monkeypatch.delattr(MgClip, "logits_of")
    assert "(score 0." in perdure(capsys, "predict", run, pictures / "0.png")[1]
    code, _, err = perdure(capsys, "predict", run, pictures / "0.png", "--unknown-below", "0.5")
    assert code == 2 and "mg_clip gives scores, no probabilities" in err


def test_predict_without_an_image_or_a_run_says_so(run, tmp_path, capsys):
    assert perdure(capsys, "predict", run, tmp_path)[0] == 2
    code, _, err = perdure(capsys, "predict", tmp_path, tmp_path / "a.png")
    assert code == 2
    assert "not a run's folder" in err


PLAIN = """
import json, sys
sys.modules["perdure"] = None  # as where it is not installed
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessor
from peft import PeftModel
from safetensors.torch import load_file
from transformers import CLIPModel

clip = PeftModel.from_pretrained(CLIPModel.from_pretrained("{folder}/model"), "{folder}/adapter").eval()
visual_classifier = load_file("{folder}/head.safetensors")["rows"]
about = json.load(open("{folder}/classes.json"))
look = CLIPImageProcessor.from_pretrained("{folder}/model")
words = AutoTokenizer.from_pretrained("{folder}/model")
pixels = look([Image.open(p) for p in {images}], return_tensors="pt")["pixel_values"]
prompts = [about["template"].format(name) for name in about["classes"]]
ids = words(prompts, padding=True, return_tensors="pt")["input_ids"]
with torch.no_grad():
    v = F.normalize(clip.get_image_features(pixel_values=pixels).pooler_output, dim=1)
    u = F.normalize(clip.get_text_features(input_ids=ids).pooler_output, dim=1)
    text = (clip.logit_scale.exp() * v @ u.T).softmax(1).softmax(1)
    visual = (v @ F.normalize(visual_classifier, dim=1).T).softmax(1)
    a, b = about["text_weight"], about["visual_weight"]
    print(json.dumps(((a * text + b * visual) / (a + b)).tolist()))
"""


def test_an_export_answers_the_same_without_perdure(run, pictures, tmp_path, capsys):
    assert perdure(capsys, "export", run, tmp_path / "model")[0] == 0
    images = [str(pictures / f"{i}.png") for i in range(3)]
    script = PLAIN.format(folder=tmp_path / "model", images=images)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    plain = torch.tensor(json.loads(done.stdout))
    opened = api.reopen(run, device="cpu")
    pixels = torch.stack([opened.models["clip"].transform.pixels(Path(image)) for image in images])
    with torch.no_grad():
        ours = opened.method.predictor(opened.query)({"image": pixels})
    assert torch.allclose(plain, ours, atol=1e-5)
    assert "model-index:" in (tmp_path / "model" / "README.md").read_text()
    assert len({file.stat().st_mode for file in (tmp_path / "model").rglob("*") if file.is_file()}) == 1


def test_export_refuses_a_folder_that_is_not_empty(run, pictures, capsys):
    code, _, err = perdure(capsys, "export", run, pictures)
    assert code == 2
    assert "is not empty" in err


def test_a_run_without_a_finished_task_is_refused(run, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_bytes((run / "recipe.yaml").read_bytes())
    code, _, err = perdure(capsys, "predict", tmp_path, tmp_path / "a.png")
    assert code == 2
    assert "no task of this run is finished" in err
    assert not checkpoint_file(tmp_path).exists()
