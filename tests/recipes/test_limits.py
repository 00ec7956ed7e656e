"""Numbers without bounds, texts without end: each is refused with its limit before anything is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import recipe
from perdure.errors import PerdureError, RecipeError
from perdure.files.yaml_limits import DEEPEST, MOST_BYTES, MOST_VALUES, plain_yaml
from perdure.recipe import limits
from perdure.settings import config

GOOD = """stream: {name: class_incremental, data: digits, step: 5, train_per_class: 10, test_per_class: 5}
models: {net: {name: mlp, inputs: 192, hidden: 8}}
method: {name: er, epochs: 2, buffer_size: 8}
run: {device: cpu, threads: 1}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "q.yaml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*overrides):
    with pytest.raises(PerdureError) as raised:
        loaded = recipe.load("q.yaml", overrides)
        recipe.check_fit(loaded, recipe.build_stream(loaded))
    return str(raised.value)


COUNTS = ["method.epochs", "method.batch_size", "method.buffer_size", "models.net.hidden", "stream.train_per_class"]
SEEDS = ["run.seed", "models.net.seed", "stream.order_seed"]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([*COUNTS, *SEEDS, "run.threads", "run.workers"]), st.integers(2**63, 10**80))
def test_no_setting_takes_a_number_beyond_64_bits(name, number):
    assert "64 bits" in refused(f"{name}={number}")


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(COUNTS), st.integers(config.MOST + 1, 2**63 - 1))
def test_a_count_has_an_end(name, number):
    assert f"at most {config.MOST}" in refused(f"{name}={number}")


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SEEDS), st.integers(0, 2**63 - 1))
def test_a_seed_of_64_bits_is_taken(name, number):
    recipe.load("q.yaml", [f"{name}={number}"])


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["method.lr", "run.save_every"]), st.floats(3.5e38, allow_infinity=True))
def test_a_rate_lies_within_float32(name, number):
    found = refused(f"{name}={config.plain(number)!r}".replace("inf", ".inf"))
    assert "float32" in found or "finite" in found


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.threads=100000", "at most 1024"),
        ("run.workers=100000", "at most 256"),
        ("models.net.hidden=10000000", "models.net: needs at least 364 TiB of memory"),
        ("models.net={name: resnet18, width: 1000000}", "models.net: needs at least"),
        ("models.net={name: gated_resnet, width: 1000000}", "models.net: needs at least"),
        ("models.net={name: resnet18, stages: [1000000000]}", "models.net: needs at least"),
        (
            "stream.data={name: microworld, train_per_class: 1000000000}",
            "stream.data: needs at least 298 GiB",
        ),
        ("method.epochs=1000000000", "the run would take 1e+10 steps"),
        ('models.net.weights=""', "the path is empty"),
        (f"models.net.weights={'n' * 300}", "a name of 300 bytes"),
        ('models.net.weights="a\\0b"', "without the character NUL"),
    ],
)
def test_what_no_machine_holds_is_refused_by_arithmetic(override, said, monkeypatch):
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: type("_", (), {"total": 2**35}))
    assert said in refused(override)


def test_weights_that_the_disk_has_no_room_for_are_refused(monkeypatch):
    monkeypatch.setattr(limits, "_free", lambda path: 2**20)
    assert "a checkpoint needs at least" in refused("models.net.hidden=10000")
    loaded = recipe.load("q.yaml")
    recipe.check_fit(loaded, recipe.build_stream(loaded))


def test_views_that_no_memory_holds_are_refused_before_anything_is_built():
    loaded = recipe.load("rlcf_encoder/microworld", ["method.views=1000000000"])
    with pytest.raises(RecipeError, match=r"method: needs at least 11\.2 TiB of memory"):
        recipe.build_stream(loaded)


def test_a_generated_data_set_that_no_memory_holds_is_not_written(capsys):
    from perdure.cli import main

    with pytest.raises(SystemExit) as left:
        main(["data", "make", "microworld", "--as", "imagefolder", "--out", "o", "train_per_class=1000000000"])
    assert left.value.code == 2 and "microworld: needs at least" in capsys.readouterr().err
    assert not Path("o").exists()


@pytest.mark.parametrize(
    ("width", "stages"), [(4, (1, 2)), (8, (1, 2, 4)), (3, (2, 1))], ids=["two_stages", "three", "narrowing"]
)
def test_a_forecast_of_a_network_is_the_size_of_its_weights(width, stages):
    from perdure.models import mlp, resnet18

    for module, settings_of in ((resnet18, {"width": width, "stages": stages}), (mlp, {"hidden": 10 * width})):
        asked = module.Config(**settings_of)
        own = sum(4 * p.numel() for p in module.load(asked).parameters())
        assert 0.7 * own < asked.bytes_needed() <= own


def test_every_shipped_recipe_passes_the_forecast_of_memory(monkeypatch):
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: type("_", (), {"total": 2**33}))
    for name in ("er/digits", "dynamos/digits", "mg_clip/microworld", "sefe/microworld"):
        limits.require_room(recipe.load(name))


# -- text ---------------------------------------------------------------------------------------------------


BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
)
TEXTS = {
    "two_byte_order_marks": ("\ufeff\ufeff" + GOOD, "second byte-order mark"),
    "too_large": ("#" * (MOST_BYTES + 1), "larger than"),
    "too_deep_in_brackets": ("stream: " + "[" * (DEEPEST + 5) + "]" * (DEEPEST + 5), "nested too deeply"),
    "ten_thousand_deep": ("stream: " + "{a: " * 10_000, "q2.yaml"),
    "deep_blocks": ("\n".join(" " * i + "a:" for i in range(900)), "nested too deeply"),
    "a_bomb_of_aliases": (BOMB, "too many values"),
    "itself": ("base: q2.yaml\n", "based on this recipe itself"),
    "an_endless_device": ("base: /dev/zero\n", "/dev/zero"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_recipe_beyond_a_limit_is_one_message(name):
    text, said = TEXTS[name]
    Path("q2.yaml").write_text(text)
    with pytest.raises(RecipeError) as raised:
        recipe.load("q2.yaml")
    assert said in str(raised.value) and len(str(raised.value)) < 2000


def test_a_chain_of_bases_has_an_end():
    for i in range(100):
        Path(f"b{i}.yaml").write_text(f"base: b{i + 1}.yaml\n")
    with pytest.raises(RecipeError, match="more than 20 recipes are based on one another"):
        recipe.load("b0.yaml")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_a_device_is_no_recipe(device):
    with pytest.raises(RecipeError):
        recipe.load(device)


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(st.integers(0, 9), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=30),
    st.integers(0, 2 * DEEPEST),
)
def test_a_yaml_value_within_the_limits_is_read_and_beyond_them_is_a_message(value, more):
    text = "[" * more + json.dumps(value) + "]" * more
    depth = more + _depth(value)
    if depth > DEEPEST:
        with pytest.raises(PerdureError, match="nested too deeply"):
            plain_yaml(text, where="x")
    else:
        assert json.dumps(plain_yaml(text, where="x")) == text


MERGES = "a: &a {x: 1}\nk0: &k0 {<<: [*a, *a]}\n"
MERGES += "".join(f"k{i}: &k{i} {{<<: [*k{i - 1}, *k{i - 1}]}}\n" for i in range(1, 40))


def test_merges_of_merges_do_not_multiply():
    with pytest.raises(PerdureError, match="merge keys"):
        plain_yaml(MERGES, where="x")


@pytest.mark.parametrize("opening", ["[", "{a: ", "[{a: "])
def test_nesting_without_end_is_seen_before_it_is_parsed(opening):
    with pytest.raises(PerdureError, match="nested too deeply"):
        plain_yaml(opening * 100_000, where="x")
    with pytest.raises(RecipeError, match="nested too deeply"):
        recipe.load("q.yaml", [f"method.x={opening * 10_000}"])


def test_more_values_than_any_recipe_has_are_a_message():
    with pytest.raises(PerdureError, match=f"more than {MOST_VALUES} values"):
        plain_yaml(BOMB, where="x")


def _depth(value):
    return 1 + max(map(_depth, value)) if isinstance(value, list) else 0
