"""Checkpoints: exact, atomic, checked, and nothing but tensors and JSON."""

import pickle

import pytest
import torch

from perdure import checkpoint
from perdure.errors import CheckpointError

STATE = {
    "weight": torch.randn(3, 4),
    "half": torch.arange(5, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 2),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "optimizer": {0: {"step": torch.tensor(3.0)}, 1: {"betas": (0.9, 0.999)}},
    "names": ["a", "ü", None, True, 0.1 + 0.2],
    "$odd": {"$tensor": "not a tensor"},
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_what_is_saved_comes_back_exactly(tmp_path):
    checkpoint.save(tmp_path / "deep" / "state.safetensors", STATE)
    assert same(checkpoint.load(tmp_path / "deep" / "state.safetensors"), STATE)


def test_tensors_that_share_memory_are_saved_as_they_are(tmp_path):
    row = torch.arange(6.0)
    checkpoint.save(tmp_path / "s", {"all": row, "part": row[2:4], "turned": row.view(2, 3).T})
    loaded = checkpoint.load(tmp_path / "s")
    assert torch.equal(loaded["part"], row[2:4])
    assert torch.equal(loaded["turned"], row.view(2, 3).T)


def test_a_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "s"
    checkpoint.save(path, STATE)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


def test_a_file_cut_short_is_noticed(tmp_path):
    path = tmp_path / "s"
    checkpoint.save(path, STATE)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


def test_pickles_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "p").write_bytes(pickle.dumps({"a": 1}))
    torch.save({"a": torch.ones(1)}, tmp_path / "t")
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "f")
    for name, message in (("p", "pickle"), ("t", "pickle"), ("f", "not a checkpoint of perdure"), ("none", "no such")):
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(tmp_path / name)


def test_objects_are_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "s"
    checkpoint.save(path, {"a": 1})
    with pytest.raises(CheckpointError, match="holds a set at '/b/c'"):
        checkpoint.save(path, {"b": {"c": {1, 2}}})
    assert checkpoint.load(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_stored_bytes_counts_all_tensors():
    assert checkpoint.stored_bytes({"a": torch.zeros(3), "b": [torch.zeros(2, dtype=torch.int64), "x", 1]}) == 28


def test_files_have_the_permissions_that_the_process_gives_to_new_ones(tmp_path):
    """safetensors alone would let nobody but the owner read."""
    (tmp_path / "plain").write_text("")
    checkpoint.save(tmp_path / "a.safetensors", {"x": torch.zeros(1)})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
