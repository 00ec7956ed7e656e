"""Rehearsal by the command, on input that cannot be right: one message, exit code 2, no result that is half written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perdure import api
from perdure.cli import main
from perdure.families import rehearsal

pytestmark = pytest.mark.slow
DIGITS = {"name": "class_incremental", "data": "digits", "step": 5, "train_per_class": 6, "test_per_class": 2}
MLP = {"name": "mlp", "inputs": 192, "hidden": 8}
NET = {"name": "resnet18", "width": 4, "stages": [1, 2], "classes": 4}
GATED = NET | {"name": "gated_resnet", "hidden_ratio": 2}
NETS = {"dynamos": GATED, "dynamos_sgd": GATED}
EACH_WAY = ("sgd", "er", "derpp", "agem", "gem", "icarl", "cls_er", "joint_net", "ewc_online", "dynamos")
"""A method of each way to learn."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


def recipe(*, stream=DIGITS, net=MLP, **method):
    tree = {"stream": stream, "models": {"net": net}, "method": method, "run": {"device": "cpu", "threads": 1}}
    Path("q.yaml").write_text(json.dumps(tree))  # JSON is YAML


def said(capsys, command, *arguments):
    """Exit code and what was written to standard error."""
    with pytest.raises(SystemExit) as left:
        main([command, "q.yaml", *(["--quiet"] if command == "run" else []), *arguments])
    return left.value.code, capsys.readouterr().err


def refused(capsys, command, *arguments, expected):
    """One line, exit code 2, and nothing that looks like a result."""
    code, err = said(capsys, command, *arguments)
    assert code == 2, err
    assert len(err.splitlines()) == 1 or "nothing was run" in err, err
    assert expected in err
    assert "Traceback" not in err
    there = {path.name for path in Path("runs").rglob("*") if "versions" not in path.parts}
    assert not there & {"card.json", "report.html", "report.md", "scores.csv"}
    assert not [name for name in there if ".part" in name or name.endswith(".tmp")]
    if command == "check":
        assert not there


def pictures(*sizes, test=()):
    """A folder of two images a class for training and for test, of its class's size, or one of each size."""
    generator = np.random.default_rng(0)
    for split, of_split in (("train", sizes), ("test", test or sizes)):
        for number, of_class in enumerate(of_split):
            folder = Path("images", split, f"c{number}")
            folder.mkdir(parents=True)
            for i in range(2):
                size = of_class if isinstance(of_class, int) else of_class[i]
                pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return {"name": "class_incremental", "step": 2, "data": {"name": "image_folder", "root": "images"}}


# -- batches --------------------------------------------------------------------------------------------


def test_batches_of_one_run_to_the_end_without_a_buffer(folder, capsys):
    recipe(stream=pictures(8, 8, 8, 8), net=NET, name="er", batch_size=1, minibatch_size=1, buffer_size=0)
    assert said(capsys, "run")[0] == 0


@pytest.mark.parametrize("name", EACH_WAY)
def test_a_batch_that_leaves_batch_norm_one_value_is_named(folder, capsys, name):
    recipe(stream=pictures(2, 2, 2, 2), net=NETS.get(name, NET), name=name, batch_size=1)
    expected = "one image of 2 x 2 pixels leaves batch norm a single value. Expected two images in every batch"
    refused(capsys, "run", expected=expected)


# -- classes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_of_which_a_task_has_no_image_is_named(folder, capsys, command, split):
    recipe(stream=pictures(8, 8, 8, 8), net=NET, name="er")
    for file in Path("images", split, "c3").iterdir():
        file.unlink()
    refused(capsys, command, expected=f"images/{split}: 1 class folder(s) without an image: c3")
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("stream", [DIGITS, DIGITS | {"name": "general"}], ids=["tasks", "general"])
def test_a_head_smaller_than_the_stream_is_named_before_anything_is_made(folder, capsys, command, stream):
    recipe(stream=stream, net=MLP | {"classes": 7}, name="er")
    expected = "models.net.classes: a head of 7 outputs. Expected 10 or more"
    refused(capsys, command, expected=expected)
    assert not Path("runs").exists()
    assert said(capsys, "check", "models.net.classes=10") == (0, "")


def test_a_network_without_gates_is_named(folder, capsys):
    recipe(net=NET | {"classes": 10}, name="dynamos")
    refused(capsys, "run", expected="models.net: the network has no gates. Expected a gated_resnet")


# -- buffers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("er", -1), ("dynamos", -1), ("icarl", 0)])
@pytest.mark.parametrize("command", ["check", "run"])
def test_a_buffer_of_a_size_that_cannot_be_is_shown_in_the_recipe(folder, capsys, command, name, size):
    recipe(name=name, buffer_size=size, net=NETS.get(name, MLP))
    refused(capsys, command, expected=f"found {size}\n")
    assert not Path("runs").exists()


@pytest.mark.parametrize("size", [1, 61, 5000])
@pytest.mark.parametrize("name", ["er", "gem", "icarl"])
def test_a_buffer_smaller_than_the_classes_or_larger_than_the_stream_serves(folder, capsys, name, size):
    recipe(name=name, buffer_size=size)
    assert said(capsys, "run") == (0, "")


@pytest.mark.parametrize("size", [10**13, 10**30])
def test_a_buffer_larger_than_any_machine_is_refused(folder, capsys, size):
    recipe(name="er", buffer_size=size)
    most = "a number of at most 1000000000" if size < 2**63 else "a whole number of at most 64 bits"
    refused(capsys, "run", expected=f"expected {most}, found {size}")


# -- sizes ----------------------------------------------------------------------------------------------


def test_images_of_another_size_than_the_network_takes_are_named(folder, capsys):
    recipe(net=MLP | {"inputs": 784}, name="er")
    expected = "mlp: images of 192 values (3, 8, 8). Expected 784 values. Set the model's inputs"
    refused(capsys, "check", "--steps", "1", expected=expected)
    refused(capsys, "run", expected=expected)


def test_training_images_of_two_sizes_are_named(folder, capsys):
    recipe(stream=pictures(8, (8, 10), 8, 8), net=NET, name="er")
    expected = "train/c1/1.png: 'image' of shape [3, 10, 10], unlike [3, 8, 8] of train/c0/0.png. Expected one shape"
    refused(capsys, "check", "--steps", "1", expected=expected)
    refused(capsys, "run", expected=expected)


def test_test_images_of_two_sizes_are_named(folder, capsys):
    recipe(stream=pictures(8, 8, 8, 8, test=(8, (12, 8), 8, 8)), net=NET, name="er")
    expected = "test/c1/0.png: 'image' of shape [3, 12, 12], unlike [3, 8, 8] of test/c0/0.png"
    refused(capsys, "run", expected=expected)


@pytest.mark.parametrize("name", ["er", "gem", "icarl", "joint_net", "cls_er", "derpp"])
def test_a_later_task_of_another_size_is_named_and_the_run_stands_as_before_it(folder, capsys, name):
    recipe(stream=pictures(8, 8, 10, 10), net=NET, name=name)
    expected = "task 2 (classes 2-3), after the images of earlier tasks: images of 2 sizes: [3, 8, 8] and [3, 10, 10]"
    refused(capsys, "run", expected=expected)
    assert api.reopen(Path("runs/q/seed_0"), device="cpu").query.candidates == ("c0", "c1")


# -- losses and weights that are not finite -------------------------------------------------------------


def run(folder, **settings):
    """The command as a process of its own, saving after every step."""
    recipe(**settings)
    command = [sys.executable, "-m", "perdure", "run", "q.yaml", "run.save_every=1e-6"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)


def test_a_loss_that_is_not_finite_ends_the_command_and_keeps_the_last_good_checkpoint(folder):
    ended = run(folder, name="ewc_online", e_lambda=1e38, lr=0.1)
    assert ended.returncode == 2
    assert "the loss is not finite at step" in ended.stderr
    assert "task 2" in ended.stderr
    assert "layer" in ended.stderr
    assert "Traceback" not in ended.stderr
    opened = api.reopen(Path("runs/q/seed_0"), device="cpu")
    assert opened.query.candidates == ("0", "1", "2", "3", "4"), "as it stood after the first task"
    assert all(torch.isfinite(p).all() for p in opened.models["net"].parameters())


def test_a_loss_that_is_not_finite_in_the_first_task_leaves_a_finite_checkpoint(folder):
    from perdure import checkpoint

    ended = run(folder, name="er", lr=1e30, batch_size=4)
    assert ended.returncode == 2
    assert "Lower the learning rate. What runs/q/seed_0 had saved is kept; the same" in ended.stderr
    (file,) = Path("runs/q/seed_0/checkpoint/task_0000").glob("train.safetensors")
    saved = checkpoint.load(file)
    assert saved["step"] > 0
    assert all(torch.isfinite(tensor).all() for tensor in saved["state"]["net"].values())


@pytest.mark.parametrize(
    ("step", "settings", "expected"),
    [
        (5, [], "task 2, stage train: the loss is not finite at step 2; first in layer fc1."),
        (5, ["run.save_every=1e-6"], "task 2, stage train: a weight is not finite after step 1; first in layer fc1."),
        (6, [], "task 2, stage train: a weight is not finite after step 2; first in layer fc1."),
    ],
    ids=["next loss", "next save", "last step"],
)
def test_after_a_fault_the_same_command_ends_as_if_there_had_been_none(
    folder, capsys, monkeypatch, step, settings, expected
):
    """A weight turns NaN in the second task of three steps each, once, as in a faulty memory."""
    done, descend = [], rehearsal.descend

    def faulty(loss, optimizer, runtime):
        descend(loss, optimizer, runtime)
        done.append(loss)
        if len(done) == step:
            optimizer.param_groups[0]["params"][0].data[0, 0] = torch.nan

    recipe(name="er")
    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, "descend", faulty)
        refused(capsys, "run", *settings, expected=expected)
    code, err = said(capsys, "run", *settings)
    assert (code, err) == (0, "")
    assert said(capsys, "run", "run.name=whole")[0] == 0
    resumed, whole = (Path("runs", name, "seed_0", "scores.json").read_bytes() for name in ("q", "whole"))
    assert resumed == whole
