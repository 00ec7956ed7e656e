import pytest

from perdure.errors import DataError
from perdure.settings.config import Named
from perdure.streams import domain
from perdure.streams.domain import Config, build


def folder(root, **settings):
    return Named(place="data", name="image_folder", settings={"root": str(root), **settings})


@pytest.fixture
def two(tmp_path):
    """photo and sketch of the classes cat and dog, four images each."""
    from PIL import Image

    for d, name in enumerate(("photo", "sketch")):
        for c, label in enumerate(("cat", "dog")):
            for k in range(4):
                path = tmp_path / name / label / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), (d, c, k)).save(path)
    return tmp_path


def test_each_domain_is_a_task_with_the_same_candidates(two):
    made = build(Config(domains=(folder(two / "photo"), folder(two / "sketch"))))
    assert [t.name for t in made] == ["photo", "sketch"]
    assert {t.candidates for t in made} == {("cat", "dog")} and {t.offset for t in made} == {0}
    assert made.query(made.tasks[0], after=0).candidates == ("cat", "dog")
    assert [len(t.train) for t in made] == [6, 6] and [len(t.test) for t in made] == [2, 2]


def test_labels_of_later_domains_are_matched_by_name(two):
    turned = folder(two / "sketch", classes=["dog", "cat"])
    first, second = build(Config(domains=(folder(two / "photo"), turned))).tasks
    assert second.candidates == first.candidates == ("cat", "dog")
    assert all(e.target == first.candidates.index(e.id.split("/")[0]) for e in second.train)


def test_a_domain_with_other_classes_is_refused_with_the_nearest_name(two):
    (two / "sketch" / "dog").rename(two / "sketch" / "dogs")
    with pytest.raises(DataError, match=r"domain sketch: .* lacks dog and brings dogs.*Is 'dogs' meant to be 'dog'"):
        build(Config(domains=(folder(two / "photo"), folder(two / "sketch"))))


def test_the_same_folder_twice_gets_two_names(two):
    made = build(Config(domains=(folder(two / "photo"), folder(two / "photo", split_seed=1))))
    assert [t.name for t in made] == ["photo-0", "photo-1"]


def test_names_must_be_as_many_as_domains():
    config = Config(domains=(folder("a"), folder("b")), names=("one",))
    assert list(config.faults()) == [("names", "1 names for 2 domains")]


def test_generated_styles_are_domains_too():
    styles = [Named(place="data", name="microworld", settings={"style": s}) for s in ("plain", "sketch")]
    made = build(Config(domains=tuple(styles), train_per_class=1, test_per_class=1))
    assert [t.name for t in made] == ["plain", "sketch"] and len(made.tasks[1].train) == 40


def test_limits_hold_for_each_domain(two):
    made = build(Config(domains=(folder(two / "photo"), folder(two / "sketch")), train_per_class=1))
    assert [t.train.targets for t in made] == [[0, 1], [0, 1]]
    assert made.manifest["tasks"][0]["train"]["n"] == 2
    assert set(domain.RULES) <= set(made.manifest)
