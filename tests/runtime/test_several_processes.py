"""A run in several processes is that in one: with whole weights in each, and shared out by FSDP or DeepSpeed's ZeRO.

Each case of several starts real processes that talk through gloo, with SEFE on a tiny LLaVA, or a tiny Qwen2-VL.
"""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from perdure import checkpoint
from perdure.cli.launch import configurations
from perdure.evaluate import read_records
from tests import instruction_run, tiny_vlm

ROOT = Path(__file__).parents[2]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

ZERO = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")

pytestmark = pytest.mark.slow


def asked_by(name):
    """Environment that `accelerate launch` makes of a shipped configuration; it would start no FSDP on CPUs itself."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    file = str(configurations()[name])
    given = launch_command_parser().parse_args(["--config_file", file, "-m", "perdure", "list"])
    made = prepare_multi_gpu_env(_validate_launch_command(given)[0])
    return {n: v for n, v in made.items() if n.startswith(("FSDP_", "ACCELERATE_USE_"))}


def launcher(configuration):
    """What starts two processes; accelerate itself does it for ZeRO, on CPUs too."""
    if configuration in (None, "fsdp"):
        return TWO
    file = str(configurations()[configuration])
    settings = ["--config_file", file, "--num_processes", "2", "--main_process_port", "0"]
    return ["-m", "accelerate.commands.launch", *settings]


def in_one(out, weights=""):
    """`instruction_run` to its end in this process; its final state."""
    instruction_run.main(out, -1, weights)
    return checkpoint.load(out / "state.safetensors")


def launch(out, *, by=None, stop_after=None, weights=""):
    """Runs `instruction_run` in two processes by a shipped configuration; its final state if it came to the end."""
    command = [sys.executable, *launcher(by), "-m", "tests.instruction_run", str(out)]
    command += [str(-1 if stop_after is None else stop_after), *([weights] if weights else [])]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **(asked_by("fsdp") if by == "fsdp" else {}),
    }
    with (out / "said.txt").open("w+") as said:
        started = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=said, start_new_session=True)
        try:
            code = started.wait(timeout=900)
        finally:
            if started.poll() is None:
                started.terminate()  # not kill: a launcher would leave its processes behind
                started.wait(timeout=60)
        said.seek(0)
        assert code == 0, said.read()[-2000:]
    file = out / "state.safetensors"
    return checkpoint.load(file) if file.exists() else None


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    return out, in_one(out)


@pytest.fixture(scope="module", params=["fsdp", pytest.param("zero3", marks=ZERO)])
def sharing(request):
    """A configuration that shares weights out."""
    return request.param


@pytest.fixture(scope="module")
def shared_out(sharing, tmp_path_factory):
    out = tmp_path_factory.mktemp("shared_out")
    return out, launch(out, by=sharing)


def check_same(first, second, **tolerance):
    for part in ("weights", "projector"):
        for name, weight in first[part].items():
            torch.testing.assert_close(second[part][name], weight, **tolerance)
    for name, elements in first["elements"].items():
        for key in ("row_ends", "columns", "counts"):
            assert torch.equal(second["elements"][name][key], elements[key]), (name, key)


def answers(out):
    return read_records(out / "predictions" / "1_0.jsonl")


def test_two_processes_learn_the_weights_of_one(alone, tmp_path):
    state = launch(tmp_path)
    check_same(alone[1], state, rtol=1e-4, atol=1e-5)
    assert answers(tmp_path) == answers(alone[0]) and state["in parts"] == [False]


@ZERO
def test_two_processes_that_share_gradients_and_moments_out_learn_the_weights_of_one(alone, tmp_path):
    state = launch(tmp_path, by="zero2")
    check_same(alone[1], state, rtol=1e-4, atol=1e-5)
    assert answers(tmp_path) == answers(alone[0]) and state["in parts"] == [False]


def test_two_processes_that_share_the_weights_out_learn_those_of_one(alone, shared_out):
    check_same(alone[1], shared_out[1], rtol=1e-4, atol=1e-5)
    assert answers(shared_out[0]) == answers(alone[0]) and shared_out[1]["in parts"] == [True]


@pytest.fixture(scope="module")
def stopped(sharing, tmp_path_factory):
    """A shared run that was stopped in its second task, when the penalty is on: 6 steps of 2 parts a task."""
    out = tmp_path_factory.mktemp("stopped")
    assert launch(out, by=sharing, stop_after=17) is None
    assert list((out / "checkpoint").glob("task_0001/*.safetensors"))
    return out


def test_resuming_a_shared_run_in_mid_task_equals_never_stopping(sharing, shared_out, stopped, tmp_path):
    again = shutil.copytree(stopped, tmp_path / "again")
    check_same(shared_out[1], launch(again, by=sharing), rtol=0, atol=0)


def test_one_process_goes_on_where_two_that_shared_the_weights_stopped(alone, stopped, tmp_path):
    again = shutil.copytree(stopped, tmp_path / "again")
    check_same(alone[1], in_one(again), rtol=1e-4, atol=1e-5)


def test_a_vision_language_model_is_shared_out_too(sharing, tmp_path_factory, vlm_root, tmp_path):
    weights = str(tiny_vlm.folder(vlm_root, "qwen2_vl"))
    one = in_one(tmp_path, weights)
    out = tmp_path_factory.mktemp("shared_vlm")
    state = launch(out, by=sharing, weights=weights)
    check_same(one, state, rtol=1e-4, atol=1e-5)
    assert answers(out) == answers(tmp_path) and state["in parts"] == [True]
