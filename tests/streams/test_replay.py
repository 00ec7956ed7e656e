import json

import pytest
from PIL import Image

from perdure.errors import DataError, RecipeError
from perdure.settings import registry
from perdure.settings.config import Named
from perdure.streams import class_incremental, domain, replay

DIGITS = Named(place="data", name="digits")


@pytest.fixture
def saved(tmp_path):
    config = class_incremental.Config(data=DIGITS, step=5, order="random", order_seed=7, validation_share=0.1)
    stream = class_incremental.build(config)
    path = tmp_path / "manifest.json"
    replay.save(stream, path)
    return stream, path


def contents(stream):
    def listed(task):
        return [(e.id, e.target) for split in (task.train, task.validation, task.test) for e in split]

    return [(t.index, t.name, t.candidates, t.offset, listed(t)) for t in stream]


def test_a_replayed_stream_is_the_stream(saved):
    stream, path = saved
    again = replay.build(replay.Config(manifest=path))
    assert contents(again) == contents(stream)
    assert again.manifest == json.loads(path.read_text())


def test_a_result_card_serves_as_well(saved, tmp_path):
    stream, _ = saved
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"seed": 0, "manifest": dict(stream.manifest)}))
    assert contents(replay.build(replay.Config(manifest=card, data=DIGITS))) == contents(stream)


def test_a_domain_stream_is_replayed(tmp_path):
    domains = tuple(Named(place="data", name="digits", settings={"split_seed": s}) for s in (0, 1))
    stream = domain.build(domain.Config(domains=domains, names=("one", "two"), train_per_class=3))
    replay.save(stream, tmp_path / "m.json")
    assert contents(replay.build(replay.Config(manifest=tmp_path / "m.json"))) == contents(stream)
    with pytest.raises(DataError, match=r"1 data sets\. Expected 2"):
        replay.build(replay.Config(manifest=tmp_path / "m.json", domains=domains[:1]))


def test_another_split_of_the_same_data_is_refused(saved):
    _, path = saved
    other = Named(place="data", name="digits", settings={"split_seed": 3})
    with pytest.raises(DataError, match=r"the tasks differ from the manifest: 0\.test"):
        replay.build(replay.Config(manifest=path, data=other))


def test_a_changed_file_or_class_is_refused(tmp_path):
    for k in range(4):
        for label in ("cat", "dog"):
            (tmp_path / label).mkdir(exist_ok=True)
            Image.new("RGB", (4, 4), (k, 0, 0)).save(tmp_path / label / f"{k}.png")
    data = Named(place="data", name="image_folder", settings={"root": str(tmp_path)})
    manifest = tmp_path / "manifest.json"
    replay.save(class_incremental.build(class_incremental.Config(data=data, step=1)), manifest)
    (tmp_path / "cat" / "0.png").write_bytes(b"longer" * 99)
    with pytest.raises(DataError, match="the data differ from the manifest: fingerprint"):
        replay.build(replay.Config(manifest=manifest))
    (tmp_path / "cat").rename(tmp_path / "cow")
    with pytest.raises(DataError, match=r"classes\.0 cat -> cow"):
        replay.build(replay.Config(manifest=manifest))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m | {"order": [0, 1]}, "do not divide its 10 classes"),
        (lambda m: m | {"cuts": []}, "do not divide its 10 classes"),
        (lambda m: m | {"cuts": [0, 7, 5, 10]}, "do not divide its 10 classes"),
        (lambda m: m | {"order": "numeric"}, "order: Input should be a valid list"),
        (lambda m: m | {"stream": "shifted_tests"}, "holds no manifest"),
        (lambda m: {k: v for k, v in m.items() if k != "data"}, "data: Field required"),
        (lambda m: [m], "holds no manifest"),
    ],
)
def test_a_damaged_manifest_is_refused(saved, change, said):
    stream, path = saved
    path.write_text(json.dumps(change(dict(stream.manifest))))
    with pytest.raises(RecipeError, match=said):
        replay.build(replay.Config(manifest=path))


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere\.json: there is no such file"):
        replay.load(tmp_path / "nowhere.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(RecipeError, match="this is no JSON"):
        replay.load(tmp_path / "text.json")


@pytest.mark.parametrize("name", ["class_incremental", "domain", "replay"])
def test_settings_are_read_without_running_the_file(name):
    assert registry.settings("streams", name).__name__ == "Config"
    assert all(registry.field_docs("streams", name).values())


FROM_SETTINGS = {
    "permuted": {"tasks": 2, "seed": 3},
    "rotated": {"tasks": 2, "angles": (10.0, 77.5)},
    "general": {"step": 2, "order": "random", "seed": 4},
    "mnist360": {"official_sampling": True, "batch_size": 5},
}


@pytest.mark.parametrize("name", FROM_SETTINGS)
def test_streams_of_settings_are_replayed(name, tmp_path):
    module = registry.load("streams", name)
    config = module.Config(data=DIGITS, train_per_class=12, validation_share=0.2, **FROM_SETTINGS[name])
    stream = module.build(config)
    replay.save(stream, tmp_path / "m.json")
    again = replay.build(replay.Config(manifest=tmp_path / "m.json"))
    assert contents(again) == contents(stream)
    pixels = [[e.inputs["image"].tobytes() for e in task.train] for task in again]
    assert pixels == [[e.inputs["image"].tobytes() for e in task.train] for task in stream]
    assert [task.facts for task in again] == [task.facts for task in stream]
    other = Named(place="data", name="digits", settings={"split_seed": 3})
    with pytest.raises(DataError, match="differ from the manifest"):
        replay.build(replay.Config(manifest=tmp_path / "m.json", data=other))


def test_an_order_that_comes_out_otherwise_is_refused(tmp_path):
    module = registry.load("streams", "permuted")
    manifest = json.loads(json.dumps(module.build(module.Config(data=DIGITS, tasks=1)).manifest))
    manifest["changes"][0]["sha256"] = "0" * 64
    (tmp_path / "m.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"changes\.0\.sha256 000000000000"):
        replay.build(replay.Config(manifest=tmp_path / "m.json"))


@pytest.mark.parametrize(("key", "value"), [("tasks", 0), ("speed", 1)])
def test_settings_that_the_stream_does_not_take_make_no_manifest(tmp_path, key, value):
    module = registry.load("streams", "permuted")
    manifest = json.loads(json.dumps(module.build(module.Config(data=DIGITS, tasks=1)).manifest))
    manifest["settings"][key] = value
    (tmp_path / "m.json").write_text(json.dumps(manifest))
    with pytest.raises(RecipeError, match=f"settings.*{key}"):
        replay.build(replay.Config(manifest=tmp_path / "m.json"))
