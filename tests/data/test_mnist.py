import gzip

import numpy as np
import pytest

from perdure.data.mnist import NAMES, Config, files, read
from perdure.errors import DataError


def idx(array) -> bytes:
    sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def arrays(pixels):
    train, test = np.array([5, 0, 9], np.uint8), np.array([7, 2], np.uint8)
    return dict(zip(NAMES, (pixels(3, 28, 28), train, pixels(2, 28, 28), test)))


@pytest.mark.parametrize("folder", ["", "raw", "MNIST/raw", "MyMNIST/raw", "MNIST/MyMNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dash", ["-idx", ".idx"])
def test_every_place_spelling_and_packing_is_read(tmp_path, arrays, folder, zipped, dash):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        data = idx(array)
        (tmp_path / folder / (name.replace("-idx", dash) + ".gz" * zipped)).write_bytes(
            gzip.compress(data) if zipped else data
        )
    data = read(Config(root=tmp_path))
    assert (data.train.targets, data.test.targets) == ([5, 0, 9], [7, 2])
    assert data.candidates == tuple("0123456789")
    image = data.train[1].inputs["image"]
    assert image.shape == (28, 28, 3)
    assert all(np.array_equal(image[..., c], arrays[NAMES[0]][1]) for c in range(3))
    assert all(f.is_file() for f in files(Config(root=tmp_path)))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (NAMES[0], b"", "begins with nothing"),
        (NAMES[0], b"<!doctype html>", "begins with 3c21646f. Expected 00000803"),
        (NAMES[0], idx(np.zeros((3, 28, 28), np.uint8))[:-1], r"2367 bytes for \[3, 28, 28\]. Expected 2368"),
        (NAMES[0], bytes([0, 0, 8, 3]) + b"\xff" * 12, r"bytes for|begins"),
        (NAMES[1], idx(np.zeros(2, np.uint8)), "3 images but 2 labels"),
        (NAMES[1], idx(np.array([1, 2, 10], np.uint8)), "integers from 0 to 9"),
        (NAMES[3] + ".gz", b"not gzip", "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, arrays, name, content, said):
    for each, array in arrays.items():
        (tmp_path / each).write_bytes(idx(array))
    (tmp_path / name.removesuffix(".gz")).unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        read(Config(root=tmp_path))
    assert name.split("-")[0] in str(error.value)


def test_a_missing_file_is_named_with_layout_and_remedy(tmp_path):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz: this file is missing.*raw/.*download=true"):
        read(Config(root=tmp_path))
