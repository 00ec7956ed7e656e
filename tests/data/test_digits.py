import numpy as np
from sklearn.datasets import load_digits

from perdure.data.digits import Config, read


def test_all_1797_real_digits_are_there_once():
    data = read(Config())
    ids = [e.id for e in data.train] + [e.id for e in data.test]
    assert len(ids) == len(set(ids)) == 1797
    assert set(data.train.targets) == set(data.test.targets) == set(range(10))
    assert 0.29 < len(data.test) / 1797 < 0.31


def test_grey_levels_0_to_16_become_0_to_255():
    data, raw = read(Config()), load_digits()
    example = data.train[0]
    index = int(example.id.split("/")[1])
    assert example.target == raw.target[index]
    assert np.array_equal(example.inputs["image"][..., 0], np.round(raw.images[index] * 255 / 16))


def test_the_split_follows_its_seed_and_images_may_be_enlarged():
    first = [e.id for e in read(Config()).test]
    assert first == [e.id for e in read(Config(size=32)).test] != [e.id for e in read(Config(split_seed=1)).test]
    assert read(Config(size=32)).test[0].inputs["image"].shape == (32, 32, 3)
