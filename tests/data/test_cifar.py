import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from perdure.data import cifar10, cifar100, cifar_archive
from perdure.errors import DataError

NAMES = [f"name_{i}" for i in range(100)]


def python2(content) -> bytes:
    """A pickle as Python 2 wrote the published archives: protocol 2, byte strings, numpy 1's module names."""
    out = io.BytesIO()
    out.write(b"\x80\x02}(")
    for key, value in content.items():
        text = key.encode()
        out.write(b"U" + bytes([len(text)]) + text)
        out.write(_python2_value(value))
    out.write(b"u.")
    return out.getvalue()


def _python2_value(value) -> bytes:
    if isinstance(value, np.ndarray):
        raw = value.tobytes()
        shape = b"".join(b"J" + int(n).to_bytes(4, "little") for n in value.shape) + b"\x86"
        dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        state = b"(K\x01" + shape + dtype + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"t"
        return b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state + b"b"
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode()
    if isinstance(value, int):
        return b"J" + value.to_bytes(4, "little")
    return b"](" + b"".join(_python2_value(item) for item in value) + b"e"


@pytest.fixture
def data(pixels):
    return pixels(6, 3072)


def write10(root, data, dump=python2):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i in range(1, 6):
        batch = {"batch_label": f"training batch {i} of 5", "labels": [i, 9], "data": data[:2], "filenames": ["a", "b"]}
        (folder / f"data_batch_{i}").write_bytes(dump(batch))
    (folder / "test_batch").write_bytes(dump({"labels": [3, 0, 1], "data": data[3:]}))
    (folder / "batches.meta").write_bytes(dump({"label_names": NAMES[:10], "num_cases_per_batch": 2}))
    return folder


def write100(root, data, dump=python2):
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    (folder / "train").write_bytes(dump({"fine_labels": [99, 0], "coarse_labels": [1, 2], "data": data[:2]}))
    (folder / "test").write_bytes(dump({"fine_labels": [5], "coarse_labels": [1], "data": data[5:]}))
    (folder / "meta").write_bytes(dump({"fine_label_names": NAMES, "coarse_label_names": ["x"]}))
    return folder


@pytest.mark.parametrize("dump", [python2, lambda c: pickle.dumps(c, protocol=2), pickle.dumps])
def test_cifar10_reads_pickles_of_python_2_and_3(tmp_path, data, dump):
    write10(tmp_path, data, dump)
    read = cifar10.read(cifar10.Config(root=tmp_path))
    assert read.candidates == tuple(NAMES[:10])
    assert read.train.targets == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]  # batches in their order
    assert read.test.targets == [3, 0, 1]
    assert read.facts["counts"] == {"train": 10, "test": 3}
    image = read.test[0].inputs["image"]
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert tuple(image[1, 2]) == (data[3, 34], data[3, 34 + 1024], data[3, 34 + 2048])  # planes of red, green, blue
    assert [e.id for e in read.test] == ["test/00000", "test/00001", "test/00002"]


def test_cifar100_takes_fine_labels_and_the_archives_names(tmp_path, data):
    folder = write100(tmp_path, data)
    read = cifar100.read(cifar100.Config(root=tmp_path))
    assert (read.train.targets, read.test.targets) == ([99, 0], [5])
    assert read.candidates[99] == "name_99"
    assert cifar100.read(cifar100.Config(root=folder)).facts == read.facts  # the folder itself is a root as well


def test_the_reader_agrees_with_torchvision(tmp_path, data, monkeypatch):
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)
    folder = write100(tmp_path, data)
    md5 = hashlib.md5((folder / "meta").read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5})
    theirs, ours = CIFAR100(str(tmp_path)), cifar100.read(cifar100.Config(root=tmp_path))
    assert theirs.targets == ours.train.targets and tuple(theirs.classes) == ours.candidates
    assert all(np.array_equal(theirs.data[i], ours.train[i].inputs["image"]) for i in range(2))


class Harmful:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda mark: Harmful(os.system, f"touch {mark}"), "posix.system"),
        (lambda mark: Harmful(eval, f"open({str(mark)!r}, 'w')"), "eval"),
        (lambda mark: Harmful(np.load, str(mark)), "load"),
        (lambda mark: np.float64(3), r"multiarray\.scalar"),  # unpickles objects by itself
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_would_run_code_runs_none(tmp_path, data, harm, named, protocol):
    folder, mark = write100(tmp_path, data), tmp_path / "ran"
    (folder / "train").write_bytes(pickle.dumps({"data": harm(mark)}, protocol=protocol))
    with pytest.raises(DataError, match=rf"asks for \S*{named}, .* nothing of it was run"):
        cifar100.read(cifar100.Config(root=tmp_path))
    assert not mark.exists()


def test_allowed_names_cannot_be_turned_into_other_ones(tmp_path):
    path = tmp_path / "p"
    # numpy.ndarray is allowed; its attributes by a dotted name (protocol 4) are not.
    path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.")
    with pytest.raises(DataError, match=r"numpy\.ndarray\.dumps"):
        cifar_archive.load(path)


@pytest.mark.filterwarnings("error")
def test_damaged_pickles_are_refused_and_never_crash(tmp_path, data):
    clean = python2({"fine_labels": [1, 2], "data": data[:2]})
    path = tmp_path / "train"
    for cut in (0, 1, 5, 60, len(clean) // 2, len(clean) - 1):
        path.write_bytes(clean[:cut])
        with pytest.raises(DataError, match="damaged"):
            cifar_archive.load(path)
    head = clean.index(data[:2].tobytes())
    for seed in range(200):
        broken = bytearray(clean)
        for place in np.random.default_rng(seed).integers(0, head, 3):
            broken[place] ^= 0xFF
        path.write_bytes(broken)
        try:
            cifar_archive.load(path)
        except DataError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"fine_labels": [1]}, "'data' and 'fine_labels' among them"),
        ({"fine_labels": [1], "data": [1]}, "'data' is list"),
        ({"fine_labels": [1], "data": np.zeros((1, 3), np.uint8)}, r"uint8 \[1, 3\]. Expected uint8 \[images, 3072\]"),
        ({"fine_labels": [1, 2], "data": np.zeros((1, 3072), np.uint8)}, "1 images but 2 labels"),
        ({"fine_labels": [100], "data": np.zeros((1, 3072), np.uint8)}, "integers from 0 to 99"),
        ({"fine_labels": ["a"], "data": np.zeros((1, 3072), np.uint8)}, "not a list of integers"),
        (["a"], "a list. Expected a dictionary"),
    ],
)
def test_pickles_of_another_content_are_refused(tmp_path, data, content, said):
    folder = write100(tmp_path, data)
    (folder / "test").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=said):
        cifar100.read(cifar100.Config(root=tmp_path))


def test_a_missing_file_is_named_with_layout_and_remedy(tmp_path, data):
    (write10(tmp_path, data) / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"data_batch_3: this file is missing\. Expected .*data_batch_1.*download=true"):
        cifar10.read(cifar10.Config(root=tmp_path))
    assert [f.name for f in cifar10.files(cifar10.Config(root=tmp_path)) if not f.exists()] == ["data_batch_3"]


def test_download_unpacks_an_archive_that_is_there_already(tmp_path, data, monkeypatch):
    from torchvision.datasets import CIFAR100

    write100(tmp_path / "made", data)
    root = tmp_path / "data"
    root.mkdir()
    archive = root / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-100-python", "cifar-100-python")
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert len(cifar100.read(cifar100.Config(root=root, download=True)).train) == 2


def test_a_failed_download_is_one_clear_error(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, "url", (tmp_path / "nowhere.tar.gz").as_uri())
    with pytest.raises(DataError, match=r"CIFAR-100 could not be downloaded .*copy it here"):
        cifar100.read(cifar100.Config(root=tmp_path / "data", download=True))
