"""A run goes on only with the settings and the data that it began with; what moves no number may change."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from perdure import api, recipe
from perdure.errors import Interrupted, RecipeError
from perdure.resuming import require_same_data

RECIPE = """
stream: {name: class_incremental, data: {name: image_folder, root: ROOT}, step: 2}
method: {name: er, batch_size: 4}
models: {net: {name: resnet18, classes: 8, width: 8, stages: [1]}}
run: {device: cpu, out: OUT, name: mine}
"""


def picture(file, shade):
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(shade).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)


@pytest.fixture
def images(tmp_path):
    for label, name in enumerate(("ant", "bee", "cat", "dog")):
        for i in range(6):
            picture(tmp_path / "images" / ("train" if i < 4 else "test") / name / f"{i}.png", 10 * label + i)
    return tmp_path / "images"


@pytest.fixture
def asked(tmp_path, images):
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE.replace("ROOT", str(images)).replace("OUT", str(tmp_path / "runs")))
    return lambda *overrides: recipe.load(file, [*overrides])


def stopped_after_a_task(asked, monkeypatch):
    """A run that stopped when its first task was learned."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        make = api.make_runtime

        def stopping(*given, **more):
            runtime = make(*given, **more)
            runtime.stop_requested = True
            return runtime

        patch.setattr(api, "make_runtime", stopping)
        api.execute(asked(), quiet=True)


def test_a_finished_run_whose_data_changed_is_refused_by_name_split_and_number(asked, images):
    api.execute(asked(), quiet=True)
    assert not api.execute(asked(), quiet=True)[0].fresh
    picture(images / "train" / "cat" / "new.png", 99)
    with pytest.raises(RecipeError, match=r"holds a run on other data: task '.*', train: 8 examples then, 9 now"):
        api.execute(asked(), quiet=True)
    for name in ("eel", "fox"):
        picture(images / "train" / name / "0.png", 7)
        picture(images / "test" / name / "0.png", 8)
    with pytest.raises(RecipeError, match=r"2 tasks then, 3 now.*4 classes then, 6 now \(with eel, fox\)"):
        api.execute(asked(), quiet=True)
    assert api.execute(asked(), again=True, quiet=True)[0].fresh


def test_a_stopped_run_whose_data_changed_does_not_go_on(asked, images, monkeypatch):
    stopped_after_a_task(asked, monkeypatch)
    (images / "train" / "ant" / "0.png").unlink()
    with pytest.raises(RecipeError, match="train: 8 examples then, 7 now"):
        api.execute(asked(), quiet=True)
    picture(images / "train" / "ant" / "0.png", 0)
    assert api.execute(asked(), quiet=True)[0].fresh


def test_another_picture_in_the_place_of_one_is_seen(asked, images, monkeypatch):
    stopped_after_a_task(asked, monkeypatch)
    Image.new("RGB", (64, 64)).save(images / "train" / "ant" / "0.png")
    with pytest.raises(RecipeError, match=r"its files or labels are others|but others"):
        api.execute(asked(), quiet=True)


def test_a_signal_while_the_last_lines_are_written_lets_the_run_end_and_the_next_seed_wait(asked, monkeypatch):
    def card(recipe, built, *given):
        if built.stream.tasks[-1].index == 1:  # not the version that the first task leaves
            os.kill(os.getpid(), signal.SIGINT)
        return written(recipe, built, *given)

    written = api.recording.card
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=r"stopped after seed 0 \(1 of 2\)"):
        patch.setattr(api.recording, "card", card)
        api.execute(asked("run.seeds=[0, 1]"), quiet=True)
    first, second = (asked().folder(seed) for seed in (0, 1))
    assert (first / "card.json").exists() and not (first / "lock").exists() and not second.exists()
    assert [one.fresh for one in api.execute(asked("run.seeds=[0, 1]"), quiet=True)] == [False, True]


def test_data_may_lie_elsewhere_and_unreadable_files_be_skipped_from_now_on(asked, images, monkeypatch):
    stopped_after_a_task(asked, monkeypatch)
    moved = images.rename(images.parent / "moved")
    changed = [f"stream.data.root={moved}", "run.unreadable=skip", "run.save_every=7", "run.threads=1"]
    assert api.execute(asked(*changed), quiet=True)[0].fresh


def test_a_folder_in_which_nothing_was_learned_never_refuses(asked, tmp_path):
    broken = asked("models.net.weights=none.safetensors")
    with pytest.raises(Exception, match=r"none\.safetensors"):
        api.execute(broken, quiet=True)
    folder = tmp_path / "runs" / "mine" / "seed_0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe.to_yaml(broken))
    assert api.execute(asked("method.lr=0.02"), quiet=True)[0].fresh
    with pytest.raises(RecipeError, match=r"method\.lr: was 0\.02, now 0\.03"):
        api.execute(asked(), quiet=True)


def test_a_finished_run_says_so_without_torch(asked, tmp_path):
    api.execute(asked(), quiet=True)
    code = f"""
import sys
from perdure.cli import main
sys.argv = ["perdure", "run", {str(tmp_path / "mine.yaml")!r}]
try:
    main()
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "nothing was trained" in done.stderr and done.stdout.split()[-1] == "False", done.stderr
    assert "| er" in done.stdout or "er" in done.stdout


def test_a_finished_run_whose_data_are_gone_prints_its_table_and_says_so(asked, images, capsys):
    api.execute(asked(), quiet=True)
    images.rename(images.parent / "gone")
    assert not api.execute(asked())[0].fresh
    assert "its data could not be compared" in capsys.readouterr().err


def test_a_run_that_kept_no_manifest_is_compared_by_its_card(asked, tmp_path, images):
    api.execute(asked(), quiet=True)
    folder = tmp_path / "runs" / "mine" / "seed_0"
    (folder / "data.json").unlink()
    manifest = json.loads((folder / "card.json").read_text())["stream"]
    require_same_data(manifest, folder)
    manifest["tasks"][1]["test"]["n"] += 1
    with pytest.raises(RecipeError, match="test: 4 examples then, 5 now"):
        require_same_data(manifest, folder)
