"""Weights of a small network from a file: that network's, or one message that names the file and what is wrong."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from perdure.errors import WeightsError
from perdure.models import mlp

SIZES = {"inputs": 6, "hidden": 4, "classes": 3}
OWN = mlp.load(mlp.Config(**SIZES, seed=0)).state_dict()


def load(file):
    return mlp.load(mlp.Config(**SIZES, weights=file)).state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_weights_of_the_network_itself_are_taken(tmp_path, suffix):
    file = tmp_path / f"w{suffix}"
    save_file(OWN, file) if suffix == ".safetensors" else torch.save(OWN, file)
    assert all(torch.equal(OWN[key], value) for key, value in load(file).items())


STARTS = [b"PK\x03\x04zzzz", b"\x80\x04K\x01.", b"\x10\0\0\0\0\0\0\0{}", b"{" * 999]
"""Of an archive, of a pickle, of safetensors, of JSON."""


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([".pth", ".safetensors", ""]),
    st.binary(max_size=40)
    | st.sampled_from([b"PK\x03\x04zzzz", b"\x80\x04K\x01.", b"\x10\0\0\0\0\0\0\0{}", b"{" * 999]),
)
def test_any_bytes_that_are_no_weights_are_one_message(tmp_path, suffix, data):
    file = tmp_path / f"w{suffix}"
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=f"w{suffix}: cannot be read as weights|holds something else|is missing"):
        load(file)


ODD = {
    "a list": [1],
    "a number": 3,
    "numbers by name": {"a": 1},
    "tensors by number": {1: torch.zeros(2)},
    "something in state_dict": {"state_dict": {"a": [1]}},
    "no tensor": {},
    "another network": {"a": torch.zeros(3)},
    "other sizes": {key: torch.zeros(2) for key in OWN},
    "whole numbers": {key: value.long() for key, value in OWN.items()},
    "complex numbers": {key: value.to(torch.complex64) for key, value in OWN.items()},
    "no numbers": {key: value * float("nan") for key, value in OWN.items()},
    "sparse tensors": {key: value.to_sparse() for key, value in OWN.items()},
    "tensors without numbers": {key: value.to("meta") for key, value in OWN.items()},
}


@pytest.mark.parametrize("name", ODD, ids=lambda name: name.replace(" ", "_"))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_of_something_else_is_refused(tmp_path, name):
    torch.save(ODD[name], tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: "):
        load(tmp_path / "w.pth")


def test_a_folder_and_a_device_are_no_weights(tmp_path):
    for file in (tmp_path, tmp_path / "nothing.pth"):
        with pytest.raises(WeightsError, match="no such file"):
            load(file)
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    with pytest.raises(WeightsError):
        load(tmp_path / "zero.pth")
