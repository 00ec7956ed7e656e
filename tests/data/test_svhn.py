import numpy as np
import pytest
from scipy.io import savemat

from perdure.data.svhn import Config, read
from perdure.errors import DataError


@pytest.fixture
def root(tmp_path, pixels):
    savemat(tmp_path / "train_32x32.mat", {"X": pixels(32, 32, 3, 4), "y": np.array([[1], [10], [9], [2]], np.uint8)})
    savemat(tmp_path / "test_32x32.mat", {"X": pixels(32, 32, 3, 2), "y": np.array([[10], [5]], np.uint8)})
    return tmp_path


def test_label_10_is_the_digit_0_and_images_come_last_axis_first(root, pixels):
    data = read(Config(root=root))
    assert (data.train.targets, data.test.targets) == ([1, 0, 9, 2], [0, 5])
    assert np.array_equal(data.train[2].inputs["image"], pixels(32, 32, 3, 4)[..., 2])


def test_the_reader_agrees_with_torchvision(root, monkeypatch):
    from torchvision.datasets import SVHN

    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    theirs, ours = SVHN(str(root)), read(Config(root=root))
    assert theirs.labels.tolist() == ours.train.targets
    assert np.array_equal(theirs.data[3].transpose(1, 2, 0), ours.train[3].inputs["image"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a readable .mat file"),
        (b"MATLAB 5.0" + b"\0" * 300, "not a readable .mat file"),
        ({"X": np.zeros((32, 32, 3, 1), np.uint8)}, "'X' or 'y' is missing"),
        ({"X": np.zeros((32, 32, 3, 1)), "y": [[1]]}, "float64"),
        ({"X": np.zeros((32, 32, 3, 1), np.uint8), "y": [[11]]}, "labels outside 1 .. 10"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[1]]}, "2 images but 1 labels"),
        ({"X": np.zeros((32, 32, 3, 1), np.uint8), "y": np.array([["a"]])}, "labels outside"),
    ],
)
def test_a_damaged_file_is_named(root, content, said):
    path = root / "test_32x32.mat"
    path.write_bytes(content) if isinstance(content, bytes) else savemat(path, content)
    with pytest.raises(DataError, match=said) as error:
        read(Config(root=root))
    assert "test_32x32.mat" in str(error.value)


def test_a_missing_file_is_named(root):
    (root / "train_32x32.mat").unlink()
    with pytest.raises(DataError, match=r"train_32x32.mat: this file is missing.*download=true"):
        read(Config(root=root))
