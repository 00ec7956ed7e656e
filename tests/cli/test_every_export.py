"""Every method that can be exported is, through the command, and loads without perdure by the lines it prints."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perdure import api, recipe
from perdure.cli import main
from perdure.settings import registry
from perdure.types import Example

pytestmark = pytest.mark.slow
QUESTION = "What is this?"
EXPORTING = [name for name in registry.names("methods") if hasattr(registry.load("methods", name), "export")]
SMALL = {
    "instruct": (
        "method.tuning={rank: 2, alpha: 4, lr: 0.01, batch_size: 2, max_length: 512, gradient_checkpointing: false, "
        "max_new_tokens: 8}",
    ),
    "classify": ("stream.train_per_class=2", "stream.test_per_class=1", "stream.step=20"),
    "caption": (
        "stream.train.train_scenes=4",
        "stream.tests=[{name: microworld, view: captions, test_scenes: 1}]",
        "stream.metrics=[bleu_4]",
    ),
}
FITTING = {
    **dict.fromkeys(("mg_clip", "finetune", "joint", "lwf"), ("method.epochs=1",)),
    "clipcap": ("stream.names=[plain]", "method.epochs=1"),
    "capdec": ("stream.names=[plain]", "method.epochs=1"),
    "moelora": ("method.experts=2",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two instruction records of one picture, whose tasks any LLaVA method learns in a step."""
    folder = tmp_path_factory.mktemp("exports")
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / "picture.png")
    said = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "red"}]
    rows = [{"id": str(i), "image": "picture.png", "conversations": said} for i in range(2)]
    (folder / "train.json").write_text(json.dumps(rows))
    asked = {"question_id": "1", "image": "picture.png", "text": QUESTION, "answer": "red"}
    (folder / "test.json").write_text(json.dumps([asked]))
    return folder


def stated(method, folder):
    """A recipe of the method on next to nothing."""
    kind = next(kind for kind in SMALL if kind in registry.describe("methods", method).answers)
    if kind != "instruct":
        return recipe.load(f"{method}/microworld", [*SMALL[kind], *FITTING.get(method, ()), f"run.out={folder}/runs"])
    file = folder / f"{method}.yaml"
    tasks = f"[{{name: colors, train: {folder}/train.json, test: {folder}/test.json, images: {folder}}}]"
    models = "{llm: {name: llava, weights: micro-llava, dtype: float32}}"
    file.write_text(f"stream: {{name: instruction, tasks: {tasks}}}\nmodels: {models}\nmethod: {method}\n")
    return recipe.load(file, [*SMALL[kind], *FITTING.get(method, ()), f"run.out={folder}/runs"])


@pytest.fixture(scope="module")
def exported(folder):
    """Method -> (its run, the folder of its export)."""
    found = {}
    for method in EXPORTING:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PERDURE_TOKENIZER", "fallback")  # scores are not what is tested here, and need Java
            run = api.execute(stated(method, folder), quiet=True)[0].folder
        with pytest.raises(SystemExit) as leaving:
            main(["export", str(run), str(folder / method)])
        assert leaving.value.code == 0, method
        found[method] = run, folder / method
    return found


def printed(folder):
    return (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]


def test_the_folder_says_how_to_load_it_and_how_it_was_made(exported):
    assert {"sefe", "moelora", "mg_clip", "clipcap"} <= exported.keys()
    for method, (_, folder) in exported.items():
        assert printed(folder).strip(), method
        assert (folder / "recipe.yaml").is_file(), method
        assert any(folder.rglob("*.safetensors")), method


def test_the_printed_lines_run_without_perdure_and_answer_as_the_run_does(exported, folder):
    script = ["import contextlib, io, json, sys", "sys.modules['perdure'] = None", "out = {}"]
    for method, (_, made) in exported.items():
        code = printed(made).replace("picture.jpg", str(folder / "picture.png"))
        script += ["said = io.StringIO()", "with contextlib.redirect_stdout(said):", f"    exec({code!r}, {{}})"]
        script += [f"out[{method!r}] = said.getvalue()"]
    script += ["json.dump(out, open(sys.argv[1], 'w'))"]
    (folder / "ask.py").write_text("\n".join(script))
    answers = folder / "answers.json"
    done = subprocess.run([sys.executable, folder / "ask.py", answers], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(answers.read_text())
    instructed = [m for m in exported if "instruct" in registry.describe("methods", m).answers and m != "moelora"]
    assert {m: theirs[m].strip() for m in instructed} == {m: answer(exported[m][0], folder) for m in instructed}


def answer(run: Path, folder: Path) -> str:
    opened = api.reopen(run, device="cpu")
    example = Example(id="x", inputs={"text": QUESTION, "image": folder / "picture.png"})
    batch = opened.method.collate([opened.method.preprocess(example, False)])
    return opened.method.predictor(opened.query)(batch)[0]
