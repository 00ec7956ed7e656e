"""A rehearsal run as a command: losses that are not finite, batches of one, no buffer."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from perdure import api

pytestmark = pytest.mark.slow
DIGITS = {"name": "class_incremental", "data": "digits", "step": 5, "train_per_class": 6, "test_per_class": 2}
MLP = {"net": {"name": "mlp", "inputs": 192, "hidden": 8}}
NET = {"net": {"name": "resnet18", "width": 4, "stages": [1, 2], "classes": 4}}


def run(folder, *, stream=DIGITS, models=MLP, **method):
    tree = {"stream": stream, "models": models, "method": method, "run": {"device": "cpu", "threads": 1}}
    (folder / "q.yaml").write_text(json.dumps(tree))  # JSON is YAML
    command = [sys.executable, "-m", "perdure", "run", "q.yaml", "run.save_every=1e-6"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)


def pictures(root, sizes):
    """A folder of two images a class for training and for test."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for number, size in enumerate(sizes):
            folder = root / split / f"c{number}"
            folder.mkdir(parents=True)
            for i in range(2):
                Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return {"name": "class_incremental", "step": 2, "data": {"name": "image_folder", "root": str(root)}}


def test_a_loss_that_is_not_finite_ends_the_command_and_keeps_the_last_good_checkpoint(tmp_path):
    ended = run(tmp_path, name="ewc_online", e_lambda=1e38, lr=0.1)
    assert ended.returncode == 2
    assert "the loss is not finite at step" in ended.stderr
    assert "task 2" in ended.stderr
    assert "layer" in ended.stderr
    assert "Traceback" not in ended.stderr
    opened = api.reopen(tmp_path / "runs/q/seed_0", device="cpu")
    assert opened.query.candidates == ("0", "1", "2", "3", "4"), "as it stood after the first task"
    assert all(torch.isfinite(p).all() for p in opened.models["net"].parameters())


def test_a_loss_that_is_not_finite_in_the_first_task_leaves_a_finite_checkpoint(tmp_path):
    from perdure import checkpoint

    ended = run(tmp_path, name="er", lr=1e30, batch_size=4)
    assert ended.returncode == 2
    assert "Lower the learning rate; the last checkpoint is kept." in ended.stderr
    (file,) = (tmp_path / "runs/q/seed_0/checkpoint/task_0000").glob("train.safetensors")
    saved = checkpoint.load(file)
    assert saved["step"] > 0
    assert all(torch.isfinite(tensor).all() for tensor in saved["state"]["net"].values())


def test_batches_of_one_run_to_the_end_without_a_buffer(tmp_path):
    stream = pictures(tmp_path / "images", [8, 8, 8, 8])
    ended = run(tmp_path, stream=stream, models=NET, name="er", batch_size=1, minibatch_size=1, buffer_size=0)
    assert ended.returncode == 0, ended.stderr
