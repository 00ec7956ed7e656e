"""The readers on real images: parts of Tiny ImageNet, Caltech-101 and PACS, and all of MNIST."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from perdure.data import caltech101, image_folder, mnist, tiny_imagenet
from perdure.images import open_image
from perdure.settings.config import Named
from perdure.streams import class_incremental, domain

PACKS = Path(__file__).parents[3] / "shared" / "data"


def pack(name):
    if not (PACKS / name).is_dir():
        pytest.skip(f"the pack {name} is not in ../shared/data")
    return PACKS / name


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    def unpack(name):
        archive = pack(name) / f"{name}.tar.xz"
        folder = tmp_path_factory.mktemp(name)
        shutil.unpack_archive(archive, folder)
        return folder

    return unpack


@pytest.mark.slow
def test_tiny_imagenet_is_read_and_cut_into_tasks(unpacked):
    root = unpacked("tiny_imagenet_subset")
    data = tiny_imagenet.read(tiny_imagenet.Config(root=root))
    assert data.facts["counts"] == {"train": 200 * 45, "test": 200 * 25}
    names = dict(line.split("\t") for line in (pack("tiny_imagenet_subset") / "classes.tsv").read_text().splitlines())
    goldfish = next(e for e in data.train if "/n01443537/" in e.id)
    assert data.candidates[goldfish.target] in names["n01443537"]
    assert open_image(goldfish.inputs["image"]).size == (64, 64)
    settings = {"root": str(root)}
    stream = class_incremental.build(
        class_incremental.Config(data=Named(place="data", name="tiny_imagenet", settings=settings), first=100, step=20)
    )
    assert [len(t.candidates) for t in stream] == [100, 20, 20, 20, 20, 20]
    assert [len(t.train) for t in stream] == [4500, 900, 900, 900, 900, 900]
    assert stream.tasks[0].candidates[0] == data.candidates[stream.manifest["order"][0]]


@pytest.mark.slow
def test_caltech_with_100_classes_is_read(unpacked):
    data = caltech101.read(caltech101.Config(root=unpacked("caltech101_subset"), classes="100", test_share=0.25))
    assert data.facts["counts"] == {"train": 900, "test": 300}
    assert all(100 <= min(open_image(e.inputs["image"]).size) <= 224 for e in data.test[:60])
    first = data.test[0]
    assert first.id.startswith("Faces/") and data.candidates[first.target] == "faces"  # capitals sort first


@pytest.mark.slow
def test_pacs_is_four_domains_of_seven_classes(unpacked):
    root = unpacked("pacs_subset")
    names = ("photo", "art_painting", "cartoon", "sketch")
    named = [Named(place="data", name="image_folder", settings={"root": str(root / name)}) for name in names]
    stream = domain.build(domain.Config(domains=tuple(named)))
    assert tuple(t.name for t in stream) == names
    assert {t.candidates for t in stream} == {("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")}
    assert [len(t.train) + len(t.test) for t in stream] == [280] * 4
    sketch = np.asarray(open_image(stream.tasks[3].test[0].inputs["image"]))
    assert sketch.shape == (227, 227, 3) and (sketch > 250).mean() > 0.5  # mostly white paper
    assert image_folder.read(image_folder.Config(root=root / "photo")).facts["folder"] == "photo"


@pytest.mark.slow
def test_mnist_is_read_whole_and_agrees_with_torchvision(tmp_path):
    from torchvision.datasets import MNIST

    folder = pack("mnist")
    data = mnist.read(mnist.Config(root=folder))
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert data.train.targets[:10] == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in folder.glob("*.gz"):
        (raw / file.name).symlink_to(file)
    for file in list(raw.glob("*.gz")):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
    theirs = MNIST(str(tmp_path), train=False)
    assert theirs.targets.tolist() == data.test.targets
    assert np.array_equal(theirs.data[77].numpy(), data.test[77].inputs["image"][..., 1])
    assert data.facts == Named(place="data", name="mnist", settings={"root": str(tmp_path)}).build().facts
