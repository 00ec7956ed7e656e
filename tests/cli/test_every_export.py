"""Every method that can learn is exported through the command, and its printed lines answer as the run does."""

import contextlib
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML
from safetensors import safe_open

from perdure import api, prediction, recipe
from perdure.cli import main
from perdure.errors import DataError
from perdure.exports import card, onnx
from perdure.reporting import load, tables
from perdure.run_folder import versions
from perdure.settings import registry
from perdure.types import Example

pytestmark = pytest.mark.slow
QUESTION = "What is this?"
AT_TEST_TIME = {"eata"}
"""From training data it learns how much each weight matters, no weight."""
SMALL = {
    "clip": ("stream.train_per_class=2", "stream.test_per_class=1", "stream.step=20"),
    "net": ("stream.train_per_class=4", "stream.test_per_class=1", "method.epochs=1", "evaluate.start=false"),
    "backbone": ("stream.train_per_class=2", "stream.test_per_class=1", "stream.step=20"),
    "vit": ("stream.train_per_class=2", "stream.test_per_class=1", "stream.step=20", "method.epochs=1"),
    "captioner": (
        "stream.train.train_scenes=4",
        "stream.tests=[{name: microworld, content: captions, test_scenes: 1}]",
        "stream.metrics=[bleu_4]",
    ),
    "audio": ("method.epochs=1", "evaluate.start=false"),
    "llm": (
        "method.tuning={rank: 2, alpha: 4, lr: 0.01, batch_size: 2, max_length: 512, gradient_checkpointing: false, "
        "max_new_tokens: 8}",
    ),
}
FITTING = {
    **dict.fromkeys(("mg_clip", "finetune", "joint", "lwf", "magmax", "wise_ft", "bofa"), ("method.epochs=1",)),
    **dict.fromkeys(("ranpac",), ("method.projection_dim=50",)),
    **dict.fromkeys(("rail",), ("method.width=50",)),
    "clipcap": ("stream.names=[plain]", "method.epochs=1"),
    "capdec": ("stream.names=[plain]", "method.epochs=1"),
    "moelora": ("method.experts=2",),
    **dict.fromkeys(("hide", "lora_router"), ("models.clip={name: clip, weights: micro-clip}",)),
}


def main_role(method: str) -> str:
    """The role by which it is tested; a CLIP whose answers are no cosines goes with the backbones."""
    about = registry.describe("methods", method)
    roles = [role for role in about.roles if not ("clip" in about.one_role_of and role != "clip")]
    found = next(role for role in ("llm", "captioner", "audio", "net", "vit", "backbone", "clip") if role in roles)
    return "backbone" if found == "clip" and method in ("rail", "bofa", "ranpac") else found


LEARNING = [
    name
    for name in registry.names("methods")
    if name not in AT_TEST_TIME
    and registry.describe("methods", name).not_updatable != "it learns nothing from training data"
]
OF_ROLE = {role: [name for name in LEARNING if main_role(name) == role] for role in SMALL}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picture, two instruction records of it, and a few clips, which any method learns in a step or two."""
    folder = tmp_path_factory.mktemp("exports")
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / "picture.png")
    said = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "red"}]
    rows = [{"id": str(i), "image": "picture.png", "conversations": said} for i in range(2)]
    (folder / "train.json").write_text(json.dumps(rows))
    asked = {"question_id": "1", "image": "picture.png", "text": QUESTION, "answer": "red"}
    (folder / "test.json").write_text(json.dumps([asked]))
    command("data", "make", "microworld", "--as", "ave", "--out", folder / "AVE", "train_clips=4", "test_clips=2")
    return folder


def command(*words) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as leaving:
        main([str(word) for word in words])
    assert leaving.value.code == 0, words
    return said.getvalue()


def stated(method, folder):
    """A recipe of the method on next to nothing."""
    role = main_role(method)
    small = [*SMALL[role], *FITTING.get(method, ()), f"run.out={folder}/runs", "run.seeds=[0]"]
    if role == "audio":
        small.append(f"stream.data=[{{name: ave, root: {folder}/AVE}}]")
    if role != "llm":
        world = "digits" if role == "net" else "microworld"
        return recipe.load(f"{method}/{world}", small)
    file = folder / f"{method}.yaml"
    tasks = f"[{{name: colors, train: {folder}/train.json, test: {folder}/test.json, images: {folder}}}]"
    models = "{llm: {name: llava, weights: micro-llava, dtype: float32}}"
    file.write_text(f"stream: {{name: instruction, tasks: {tasks}}}\nmodels: {models}\nmethod: {method}\n")
    return recipe.load(file, small)


@pytest.fixture(scope="module")
def exported(folder):
    """Method -> (its run, the folder of its export); each is run and exported when first asked for."""
    found = {}

    def of(method):
        if method not in found:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PERDURE_TOKENIZER", "fallback")  # scores are not what is tested here, and need Java
                run = api.execute(stated(method, folder), quiet=True)[0].folder
            page = [] if main_role(method) == "audio" else ["--space"]
            said = command("export", run, *page, folder / method)
            assert printed(folder / method).strip() in said
            found[method] = run, folder / method
        return found[method]

    return of


def printed(made):
    return (made / "README.md").read_text().split("```python\n")[1].split("```")[0]


def front(made):
    return YAML(typ="safe").load((made / "README.md").read_text().split("---\n")[1])


def tensors_of(made) -> list[str]:
    return [name for file in made.rglob("*.safetensors") for name in safe_open(file, "pt").keys()]  # noqa: SIM118


def lines_for(made, folder):
    return printed(made).replace("picture.jpg", str(folder / "picture.png"))


@pytest.mark.parametrize("method", LEARNING)
def test_every_method_that_can_learn_is_exported_with_weights_recipe_and_lines_that_run(method, exported, folder):
    run, made = exported(method)
    assert (made / "recipe.yaml").read_bytes() == (run / "recipe.yaml").read_bytes()
    assert len(printed(made).strip().splitlines()) <= 5
    assert tensors_of(made)
    assert all((config.parent / "preprocessor_config.json").is_file() for config in made.rglob("config.json"))
    if main_role(method) in ("clip", "net", "vit", "backbone"):
        names = json.loads((made / "classes.json").read_text())["classes"]
        assert names == list(api.reopen(run, device="cpu").query.candidates)
    if main_role(method) in ("net", "audio", "captioner"):
        exec(lines_for(made, folder), {})
    said = front(made)
    assert said["license"] and said["pipeline_tag"] and method in said["tags"]
    result = said["model-index"][0]["results"][0]
    shown = {number.title: round(value, 3) for number, value in tables.run_numbers(load.read(run)).items()}
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == shown != {}
    dataset = result["dataset"]["name"]
    assert dataset not in ("class_incremental", "audio_visual", "captions"), "the data's name, not the stream's"


@pytest.mark.parametrize("method", [*OF_ROLE["net"], *OF_ROLE["vit"], *OF_ROLE["backbone"]])
def test_a_network_of_perdures_own_answers_as_its_run_and_carries_no_training_data(method, exported, folder):
    run, made = exported(method)
    picture = folder / "digit.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (16, 16), dtype=np.uint8)).save(picture)
    assert prediction.predict(made, [picture]) == prediction.predict(run, [picture])
    stored = [name for name in tensors_of(made) if "image" in name or "stored" in name]
    assert not stored or method == "icarl", "replayed images stay at home"


@pytest.mark.parametrize("method", ["prototype", "joint"])
def test_on_a_vit_perdures_own_state_is_written_without_training_data(method, folder):
    small = [*SMALL["clip"], f"run.out={folder}/vit_runs", "run.seeds=[0]"]
    small += [] if method == "prototype" else ["method.epochs=1"]
    run = api.execute(recipe.load(f"{method}/microworld_vit", small), quiet=True)[0].folder
    made = folder / f"{method}_on_a_vit"
    said = command("export", run, made)
    assert "perdure.predict" in said and not (made / "model").exists()
    assert not [name for name in tensors_of(made) if "image" in name]
    picture = folder / "picture.png"
    assert prediction.predict(made, [picture]) == prediction.predict(run, [picture])


@pytest.mark.parametrize("method", OF_ROLE["captioner"])
def test_an_exported_captioner_says_what_its_run_says(method, exported, folder):
    run, made = exported(method)
    assert prediction.predict(made, [folder / "picture.png"]) == prediction.predict(run, [folder / "picture.png"])


def test_the_lines_of_transformers_models_run_without_perdure_and_answer_as_the_runs_do(exported, folder):
    asked = OF_ROLE["llm"] + OF_ROLE["clip"]
    script = ["import contextlib, io, json, sys", "sys.modules['perdure'] = None", "out = {}"]
    for method in asked:
        code = lines_for(exported(method)[1], folder).replace("print(classify(", "print(classify(top=99, image=")
        script += ["said = io.StringIO()", "with contextlib.redirect_stdout(said):", f"    exec({code!r}, {{}})"]
        script += [f"out[{method!r}] = said.getvalue()", "sys.modules.pop('answer', None)"]
    script += ["json.dump(out, open(sys.argv[1], 'w'))"]
    (folder / "ask.py").write_text("\n".join(script))
    answers = folder / "answers.json"
    done = subprocess.run([sys.executable, folder / "ask.py", answers], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(answers.read_text())
    instructed = [m for m in OF_ROLE["llm"] if m not in ("moelora", "hide", "lora_router")]
    assert {m: theirs[m].strip() for m in instructed} == {m: answer(exported(m)[0], folder) for m in instructed}
    for method in OF_ROLE["clip"]:
        said, ours = eval(theirs[method]), classified(exported(method)[0], folder)
        assert next(iter(said)) == max(ours, key=ours.__getitem__)
        assert said == pytest.approx(ours, abs=1e-4), method  # four digits


def answer(run: Path, folder: Path) -> str:
    opened = api.reopen(run, device="cpu")
    example = Example(id="x", inputs={"text": QUESTION, "image": folder / "picture.png"})
    batch = opened.method.collate([opened.method.preprocess(example, False)])
    return opened.method.predictor(opened.query)(batch)[0]


def classified(run: Path, folder: Path) -> dict[str, float]:
    """What `perdure predict` says, by class."""
    row = prediction.predict(run, [folder / "picture.png"], top=99, device="cpu")[0]
    assert row["calibrated"] == (run / "calibration.json").exists()
    return {one["class"]: one["probability"] for one in row["answers"]}


@pytest.mark.parametrize("method", ["mg_clip"])
def test_merged_weights_answer_as_the_adapter_does(method, exported, folder):
    run, made = exported(method)
    merged = folder / f"{method}_merged"
    command("export", run, merged, "--merged")
    assert (made / "adapter").is_dir() and not (merged / "adapter").exists()
    asked = [runpy.run_path(str(place / "answer.py"))["classify"](folder / "picture.png") for place in (made, merged)]
    assert asked[1] == pytest.approx(asked[0], abs=1e-5)


@pytest.mark.parametrize("method", ["mg_clip", "er", "clipcap", "sefe"])
def test_the_page_of_a_space_answers_without_a_server(method, exported, folder):
    run, made = exported(method)
    app = runpy.run_path(str(made / "app.py"))
    picture = Image.open(folder / "picture.png")
    if method == "sefe":
        assert app["answer"](picture, QUESTION).strip() == answer(run, folder)
    elif method == "clipcap":
        assert app["answer"](picture) == prediction.predict(run, [picture])[0]["caption"]
    elif method == "er":
        expected = {one["class"]: one["probability"] for one in prediction.predict(run, [picture])[0]["answers"]}
        assert app["answer"](picture) == expected
    else:
        ours = classified(run, folder)
        assert app["answer"](picture) == pytest.approx({k: ours[k] for k in app["answer"](picture)}, abs=1e-4)
    assert len((made / "app.py").read_text().splitlines()) <= 60
    assert "gradio" in (made / "requirements.txt").read_text().split()
    assert front(made)["sdk"] == "gradio" and front(made)["app_file"] == "app.py"


@pytest.mark.parametrize("method", ["prototype", "mg_clip", "rapf"])
def test_onnx_answers_as_the_export_does_by_rows_texts_votes_and_an_adapter(method, exported, folder):
    pytest.importorskip("onnxscript")
    _, made = exported(method)
    said = onnx.write(made, method=method)
    assert f'sys.path.insert(0, "{made}/onnx")' in said
    picture = folder / "wide.png"
    pixels = np.random.default_rng(2).integers(0, 255, (50, 91, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    theirs = runpy.run_path(str(made / "onnx" / "answer_onnx.py"))
    ours = runpy.run_path(str(made / "answer.py"))
    for image in (picture, folder / "picture.png"):
        assert theirs["classify"](image, top=99) == pytest.approx(ours["classify"](image, top=99), abs=1e-4)
        assert theirs["pixels"](image) == pytest.approx(ours["transform"]()(Image.open(image)).numpy(), abs=1e-5)


def test_onnx_is_refused_where_it_would_not_answer(exported, folder, monkeypatch):
    pytest.importorskip("onnxscript")
    with pytest.raises(DataError, match="ONNX is written of CLIP classifiers; er exports another model"):
        onnx.write(exported("er")[1], method="er")
    monkeypatch.setattr(onnx, "TOLERANCE", 0.0)
    with pytest.raises(DataError, match="onnxruntime's probabilities differ by"):
        onnx.write(exported("mg_clip")[1], method="mg_clip")


def test_a_version_is_exported_by_its_number(exported, folder, capsys):
    run, _ = exported("er")
    own = versions.listed(run)[-1].number
    command("export", run, folder / "own", "--version", str(own))
    assert (folder / "own" / "recipe.yaml").read_bytes() == (run / "recipe.yaml").read_bytes()
    for address, number, said in ((run, "7", "there is no version 7"), (f"{run}@1", "1", "names a version already")):
        with pytest.raises(SystemExit) as leaving:
            main(["export", str(address), str(folder / "none"), "--version", number])
        assert leaving.value.code == 2 and said in capsys.readouterr().err


def test_no_page_is_made_for_clips(exported, folder, capsys):
    run, _ = exported("av_finetune")
    with pytest.raises(SystemExit) as leaving:
        main(["export", str(run), str(folder / "no_page"), "--space"])
    assert leaving.value.code == 2
    assert "no page is made for tasks of kind" in capsys.readouterr().err
    assert not (folder / "no_page").exists()


def test_an_export_says_how_its_run_is_made_again_where_its_data_lie_elsewhere():
    assert card.again(recipe.load("er/digits")) == "`perdure run recipe.yaml`"
    own = recipe.load("l2p/microworld", ["stream.data={name: image_folder, root: pictures}"])
    assert card.again(own) == "`perdure run recipe.yaml stream.data.root=...`, with the folder of its data"
