"""Settings from mappings: what is accepted, and what is said of what is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from perdure.errors import RecipeError
from perdure.settings import config
from perdure.settings.config import Named
from perdure.settings.suggestions import nearest


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    lr: Annotated[float, Field(gt=0)] = 1e-3
    epochs: Literal["auto"] | Annotated[int, Field(ge=1)] = 1
    warmup: int = 0
    batch_size: int = 8
    weight_decay: float = 0.0
    milestones: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.9, 0.99)
    root: Path | None = None
    flag: bool = False
    mode: Literal["seen", "all"] = "seen"
    by_name: dict[str, int] | None = None
    inner: Inner = Inner()

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.batch_size > 100:
            yield "batch_size", "too large"
        if self.epochs != "auto" and self.warmup > self.epochs:
            yield "warmup", "exceeds epochs"


@dataclass(frozen=True, kw_only=True)
class Holder:
    data: Annotated[Named, "data"]
    others: Annotated[tuple[Annotated[Named, "data"], ...], Field(max_length=2)] = ()
    reference: Annotated[Named, "data"] | None = None


def said(cls: type, mapping: Any) -> list[str]:
    return [config.message(fault) for fault in config.check(cls, mapping)[1]]


@pytest.mark.parametrize(
    "mapping",
    [
        {},
        {"lr": 1},
        {"epochs": "auto"},
        {"milestones": [4, 10]},
        {"pair": [0, 1]},
        {"root": "/data"},
        {"root": None},
        {"by_name": {"a": 1}},
        {"inner": {"size": 3}},
    ],
)
def test_what_yaml_can_hold_is_accepted(mapping):
    instance = config.parse(Settings, mapping, where="here")
    for key, value in mapping.items():
        assert config.plain(getattr(instance, key)) == value


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"lr": "fast"}, "lr: expected a number, found 'fast'"),
        ({"lr": "1"}, "lr: expected a number, found '1'"),
        ({"lr": -1}, "lr: expected a number above 0.0, found -1"),
        ({"lr": None}, "lr: expected a number, found nothing"),
        ({"lr": [1]}, "lr: expected a number, found a list"),
        ({"epochs": 0}, "epochs: expected auto or a number of at least 1, found 0"),
        ({"epochs": 1.5}, "epochs: expected auto or a whole number, found 1.5"),
        ({"epochs": True}, "epochs: expected auto or a whole number, found true"),
        ({"epochs": "aut"}, "epochs: expected auto or a whole number, found 'aut'; did you mean `auto`?"),
        ({"flag": "yes"}, "flag: expected true or false, found 'yes'"),
        ({"flag": 1}, "flag: expected true or false, found 1"),
        ({"mode": "sen"}, "mode: expected seen or all, found 'sen'; did you mean `seen`?"),
        ({"milestones": 3}, "milestones: expected a list, found 3; did you mean `[3]`?"),
        ({"milestones": [1, "b"]}, "milestones.1: expected a whole number, found 'b'"),
        ({"pair": [1]}, "pair: expected a longer list, found a list"),
        ({"root": 3}, "root: expected text, found 3"),
        ({"by_name": {"a": "x"}}, "by_name.a: expected a whole number, found 'x'"),
        ({"inner": {"sise": 1}}, "unknown setting `inner.sise`; did you mean `size`?"),
        ({"inner": 3}, "inner: expected settings by name, found 3"),
        ({"warmup": 3}, "warmup: exceeds epochs"),
    ],
)
def test_a_fault_is_said_in_plain_words(mapping, expected):
    assert said(Settings, mapping) == [expected]


def test_all_faults_come_at_once():
    mapping = {"lrr": 1, "lr": -1, "epochs": "x", "flag": 2, "batch_size": 101}
    assert [fault.path for fault in config.check(Settings, mapping)[1]] == [
        ("lrr",),
        ("lr",),
        ("epochs",),
        ("flag",),
        ("batch_size",),
    ]


def test_a_rule_over_several_fields_is_not_judged_by_a_faulty_one():
    # warmup 3 exceeds the default of epochs, but what epochs was meant to be is unknown.
    assert said(Settings, {"warmup": 3, "epochs": "x"}) == ["epochs: expected auto or a whole number, found 'x'"]


def test_parse_raises_one_line_a_fault_with_its_place():
    with pytest.raises(RecipeError) as caught:
        config.parse(Settings, {"lrr": 1, "flag": 2}, where="method toy")
    assert str(caught.value) == (
        "method toy: unknown setting `lrr`; did you mean `lr`?\nmethod toy: flag: expected true or false, found 2"
    )


@pytest.mark.parametrize("mapping", [None, 3, "lr", ["lr"]])
def test_settings_that_are_no_mapping_are_refused(mapping):
    assert said(Settings, mapping)[0].startswith("expected settings by name, found")


def test_text_that_is_no_unicode_is_a_fault():
    assert len(config.check(Settings, {"root": "\ud800"})[1]) == 1


def test_a_missing_setting_is_named():
    assert said(Holder, {}) == ["`data` is missing"]


def test_named_things_have_their_own_settings_checked():
    mapping = {"data": {"name": "cifar100", "rot": "/x"}, "others": ["cifar10", "cifar11"], "reference": 3}
    assert said(Holder, mapping) == [
        "unknown setting `data.rot`; did you mean `root`?",
        "others.1: no data set is called `cifar11`; did you mean `cifar10`?",
        "reference: expected the name of a data set, found 3; see: perdure list data",
    ]


def test_both_forms_of_a_name_give_place_name_and_settings():
    held = config.parse(Holder, {"data": "digits", "others": [{"name": "digits", "size": 16}]}, where="here")
    assert held.data == Named(place="data", name="digits")
    assert held.others == (Named(place="data", name="digits", settings={"size": 16}),)
    assert config.plain(held)["others"] == [{"name": "digits", "size": 16}]
    assert config.parse(Holder, config.plain(held), where="here") == held


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("bs", "batch_size"),
        ("wd", "weight_decay"),
        ("learning_rate", "lr"),
        ("epoch", "epochs"),
        ("n_epochs", "epochs"),
        ("epochz", "epochs"),
        ("batch-size", "batch_size"),
        ("LR", "lr"),
        ("lrr", "lr"),
        ("dataset", "data"),
        ("cifar", "cifar100"),
        ("zzz", None),
    ],
)
def test_the_nearest_name_knows_other_words_and_misspellings(written, meant):
    assert nearest(written, ["lr", "epochs", "batch_size", "weight_decay", "data", "cifar100"]) == meant


TEXT = st.text("aë1:.- \n\x00", max_size=4) | st.sampled_from(["name", "digits", "auto", "size", "1e-3"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["lr", "epochs", "pair", "inner", "by_name", "mode", "root", "x"]), VALUES))
def test_any_mapping_gives_settings_or_faults_and_never_a_traceback(mapping):
    instance, faults = config.check(Settings, mapping)
    assert (instance is None) == bool(faults)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["data", "others", "reference"]), VALUES))
def test_any_mapping_with_named_things_gives_settings_or_faults(mapping):
    instance, faults = config.check(Holder, mapping)
    assert (instance is None) == bool(faults)
