"""Recipes: what YAML means, how faults are shown, what overrides and bases change, what comes back."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import shop
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import recipe
from perdure.errors import RecipeError
from perdure.recipe import text as yaml_text
from perdure.recipe.source import read, read_overrides
from perdure.settings import config

GOOD = """
stream: {name: class_incremental, data: digits, step: 2}
models: {clip: {name: clip, weights: micro-clip}}
method: {name: mg_clip, lr: 1e-3}
"""


@pytest.fixture(autouse=True)
def other_names(tmp_path, monkeypatch):
    """A package with a method whose settings are known here, and an empty working folder."""
    monkeypatch.syspath_prepend(str(shop.write(tmp_path / "shop", importable=True)))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield
    shop.forget()


def write(text: str, name: str = "q.yaml") -> str:
    Path(name).write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
    return name


def faults(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe.load(write(text), overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


LEVELS = [f"{c}: &{c} [{','.join(['*' + p] * 10)}]" for p, c in zip("abcde", "bcdef")]
BOMB = "\n".join(["a: &a [1,1,1,1,1,1,1,1,1,1]", *LEVELS])
"""A million values in six lines."""


# -- faults ---------------------------------------------------------------------------------------------


def test_planted_faults_are_reported_together_each_with_line_and_caret():
    text = """
    stream: {name: steps, data: crumbs}
    models: {clip: cube}
    method:
      name: wobble
      lrr: 1e-3
      lr: -1
      warmup: 9
      epochs: 3
      decay: much
      labels: [a]
      labels: [b]
    evaluate: {plan: sen}
    """
    assert faults(text) == textwrap.dedent("""\
        q.yaml:5:3: error: unknown setting `method.lrr`
          5 |   lrr: 1e-3
            |   ^^^ did you mean `lr`?
        q.yaml:6:7: error: expected a number above 0.0, found -1
          6 |   lr: -1
            |       ^^
        q.yaml:7:11: error: must not exceed epochs (3)
          7 |   warmup: 9
            |           ^
        q.yaml:9:10: error: expected settings by name, found 'much'
          9 |   decay: much
            |          ^^^^
        q.yaml:11:3: error: `labels` is given twice
         11 |   labels: [b]
            |   ^^^^^^ first on line 10
        q.yaml:12:18: error: expected seen, current, all, last or seen+next, found 'sen'
         12 | evaluate: {plan: sen}
            |                  ^^^ did you mean `seen`?
        6 errors; nothing was run""")


def test_a_misspelt_method_and_a_misspelt_section_are_suggested():
    text = """
    stream: {name: steps, data: crumbs}
    method: wobbel
    evalute: {plan: seen}
    """
    assert faults(text) == textwrap.dedent("""\
        q.yaml:2:9: error: no method is called `wobbel`
          2 | method: wobbel
            |         ^^^^^^ did you mean `wobble`?
        q.yaml:3:1: error: unknown section `evalute`
          3 | evalute: {plan: seen}
            | ^^^^^^^ did you mean `evaluate`?
        2 errors; nothing was run""")


def test_models_must_be_those_that_the_method_takes():
    text = """
    stream: {name: steps, data: crumbs}
    models: {clp: cube}
    method: wobble
    """
    assert faults(text) == textwrap.dedent("""\
        q.yaml:2:1: error: method `wobble` needs a model `clip`
          2 | models: {clp: cube}
            | ^^^^^^ see: perdure list models
        q.yaml:2:10: error: method `wobble` takes no model `clp`
          2 | models: {clp: cube}
            |          ^^^ it takes: clip, reward
        2 errors; nothing was run""")


def test_a_model_with_a_default_may_be_left_out_and_null_takes_a_role_away():
    text = "stream: {name: steps, data: crumbs}\nmodels: {clip: cube, reward: cube}\nmethod: wobble"
    assert set(recipe.load(write(text)).models) == {"clip", "reward"}
    assert set(recipe.load(write(text), ["models.reward=null"]).models) == {"clip"}


def test_missing_sections_are_named():
    found = faults("run: {seed: 1}")
    assert "q.yaml:1:1: error: the section `stream` is missing; see: perdure list streams" in found
    assert "the section `method` is missing" in found


def test_seeds_twice_a_bad_folder_name_and_a_bad_device_are_faults():
    found = faults(GOOD + "run: {seeds: [1, 1], name: a/b, device: gpu}")
    assert "seed 1 is given twice" in found
    assert "it names a folder" in found
    assert "expected auto, cpu, cuda, cuda:1, xpu, xpu:1 or mps, found 'gpu'" in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "q.yaml:1:1: error: the recipe is empty"),
        ("# only a comment", "the recipe is empty"),
        ("- a\n- b", "a recipe is a mapping of sections"),
        ("just words", "a recipe is a mapping of sections"),
        ("method: [1", "q.yaml:1:11: error: expected ',' or ']'"),
        ("method: 'x", "found unexpected end of stream"),
        ("method: a: b", "mapping values are not allowed here"),
        ("method:\n\tname: x", "q.yaml:2:1: error: a tab indents this line; YAML wants spaces"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("method: *x", "found undefined alias 'x'"),
        ("method: &a [*a]", "a value contains itself"),
        ("method: !!python/name:os.system x", "tags are not read"),
        ("stream: {name: !secret x}", "tags are not read: !secret"),
        ("? [a, b]\n: 1", "a key must be a word"),
        ("run: {seed: " + "9" * 5000 + "}", "not a number: 999"),
        ("run: {seed: 0x" + "f" * 5000 + "}", "not a number: 0xf"),
        ("a: \x07", "the character U+0007 is not allowed in YAML"),
        ("[" * 3000, "error: "),
        ("%YAML 9.9\n---\na: 1", "found incompatible YAML document"),
        (
            BOMB,
            "aliases make too many values",
        ),
    ],
)
def test_what_is_not_a_recipe_is_one_message(text, expected):
    assert expected in faults(text)


def test_bytes_that_are_not_utf8_and_folders_are_named():
    Path("q.yaml").write_bytes(b"method: \xff")
    with pytest.raises(RecipeError, match=r"q\.yaml: this is no UTF-8 text \(byte 8"):
        recipe.load("q.yaml")
    with pytest.raises(RecipeError, match=r"there is no recipe or file `\.`"):
        recipe.load(".")


def test_a_fault_is_shown_without_the_control_characters_of_its_line():
    found = faults('method: "\\e[31m"\nrun: {name: "\x85", devise: "é漢"}')
    assert "\x1b" not in found
    assert "\x85" not in found


def test_the_caret_counts_wide_characters_as_two_columns():
    lines = faults(GOOD + 'run: {name: "漢字", devise: cpu}').splitlines()
    source = next(line for line in lines if "devise: cpu" in line)
    caret = lines[lines.index(source) + 1]
    assert caret.index("^") == source.index("devise") + 2  # two characters before it are wide


def test_checking_imports_neither_torch_nor_numpy():
    write(GOOD + "run: {sed: 1}")
    code = "import sys; from perdure import recipe\ntry: recipe.load('q.yaml')\nexcept recipe.RecipeError: pass\n"
    code += "print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# -- YAML -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-3", 0.001),
        ("3e-4", 0.0003),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("Yes", "Yes"),
        ("true", True),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("-0x1F", -31),
        ("+3", 3),
        ("1_000", 1000),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("null", None),
        ("~", None),
        ("", None),
        ("'012'", "012"),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("1.2.3", "1.2.3"),
        ("0755", 755),
    ],
)
def test_values_are_those_of_yaml_1_2(written, meant):
    layer, wrong = read(Path(write(f"key: {written}\n")), label="q.yaml")
    assert wrong == []
    assert layer.values["key"] == meant
    assert type(layer.values["key"]) is type(meant)


def test_words_that_yaml_1_1_took_for_truth_are_keys_and_labels_here():
    layer, _ = read(Path(write("no: 1\nlabels: [no, on, off, yes]\n")), label="q.yaml")
    assert layer.values == {"no": 1, "labels": ["no", "on", "off", "yes"]}


def test_a_number_where_text_is_wanted_is_said_and_not_guessed():
    text = "stream: {name: steps, data: crumbs}\nmodels: {clip: cube}\nmethod: {name: wobble, labels: [no, 012]}"
    assert "q.yaml:3:37: error: expected text, found 12" in faults(text)


# -- overrides ------------------------------------------------------------------------------------------


def test_overrides_are_yaml_and_come_last():
    loaded = recipe.load(write(GOOD), ["method.lr=5e-4", "run.seeds=[3, 4]", "stream.data={name: digits, size: 16}"])
    assert loaded.method.settings["lr"] == 5e-4
    assert loaded.seeds == (3, 4)
    assert loaded.stream.settings["data"] == {"name": "digits", "size": 16}


@pytest.mark.parametrize(("text", "expected"), [("3,4", (3, 4)), ("[3,4]", (3, 4)), ("0,1,2", (0, 1, 2))])
def test_a_list_needs_no_brackets_on_the_command_line(text, expected):
    assert recipe.load(write(GOOD), [f"run.seeds={text}"]).seeds == expected


def test_a_fault_in_a_list_without_brackets_is_shown_where_it_stands():
    with pytest.raises(RecipeError) as raised:
        recipe.load(write(GOOD), ["run.seeds=0,x"])
    assert "<command line>:1:13: error" in str(raised.value) and "run.seeds=0,x" in str(raised.value)


def test_a_setting_of_a_thing_that_is_named_shortly_can_be_overridden():
    loaded = recipe.load(write(GOOD), ["stream.data.size=16"])
    assert loaded.stream.settings["data"] == {"name": "digits", "size": 16}


def test_another_name_brings_its_own_settings():
    loaded = recipe.load(write(GOOD), ["method.name=rapf"])
    assert loaded.method.settings == {}
    loaded = recipe.load(write(GOOD), ["method.name=rapf", "method.lr=1e-2"])
    assert loaded.method.settings == {"lr": 1e-2}


def test_faults_of_overrides_have_the_same_form():
    given = ["method.lr=fast", "method.lrr=1", "lr=1e-4", "run", "run.seed=[", "run.seed=1", "run.seed=2"]
    assert faults(GOOD, *given) == (
        textwrap.dedent("""\
        <command line>:1:11: error: expected a number, found 'fast'
          1 | method.lr=fast
            |           ^^^^
        <command line>:2:8: error: unknown setting `method.lrr`
          2 | method.lrr=1
            |        ^^^ did you mean `lr`?
        <command line>:3:1: error: `lr` lacks its section
          3 | lr=1e-4
            | ^^ write `method.lr`
        <command line>:4:1: error: `run` is not a setting
          4 | run
            | ^^^ write section.key=value
        <command line>:5:11: error: expected the node content, but found '<stream end>' (while parsing a flow node)
          5 | run.seed=[
            |           ^
        <command line>:7:1: error: `run.seed` is given twice
          7 | run.seed=2
            | ^^^^^^^^ also argument 6
        6 errors; nothing was run""")
    )  # fmt: skip


def test_a_bare_setting_that_several_sections_have_lists_them():
    found = faults(GOOD, "batch_size=3")
    assert "write one of: method.batch_size, evaluate.batch_size" in found


def test_a_misspelt_bare_setting_gets_its_full_name():
    assert "did you mean `method.visual_lr`?" in faults(GOOD, "visual_l=3")


def test_one_seed_on_the_command_line_takes_the_place_of_several():
    text = GOOD + "run: {seeds: [0, 1, 2]}"
    assert recipe.load(write(text)).seeds == (0, 1, 2)
    assert recipe.load(write(text), ["run.seed=7"]).seeds == (7,)


# -- bases and names ------------------------------------------------------------------------------------


def test_a_base_is_changed_key_by_key_and_its_published_numbers_are_not_inherited():
    write(GOOD + "expect: [{metric: last, value: 80, source: a paper}]\nevaluate: {batch_size: 7}", "below.yaml")
    loaded = recipe.load(write("base: below.yaml\nmethod: {lr: 2}\nevaluate: {plan: all}"))
    assert loaded.method.settings == {"lr": 2}
    assert (loaded.evaluate.batch_size, loaded.evaluate.plan) == (7, "all")
    assert loaded.expect == ()
    assert recipe.load("below.yaml").expect[0].value == 80


def test_a_base_may_be_a_shipped_recipe():
    loaded = recipe.load(write("base: mg_clip/cifar100\nstream: {step: 5}"))
    assert loaded.stream.settings == {"data": "cifar100", "step": 5}
    assert loaded.method.name == "mg_clip"


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("mg_clip/cifar10", "did you mean `mg_clip/cifar100`?"),
        ("q.yaml", "`q.yaml` is based on this recipe itself"),
        ("3", "expected a recipe, found 3"),
    ],
)
def test_a_base_that_cannot_be_is_a_fault_with_its_line(base, expected):
    found = faults(GOOD + f"base: {base}")
    assert "q.yaml:4:7: error: " in found
    assert expected.lower() in found.lower()


def test_two_recipes_based_on_each_other_are_a_fault():
    write("base: q.yaml", "r.yaml")
    assert "is based on this recipe itself" in faults("base: r.yaml")


def test_an_unknown_recipe_suggests_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean `mg_clip/cifar100`"):
        recipe.load("mg_clip/cifar10")
    with pytest.raises(RecipeError, match=r"Did you mean .*`coda_prompt/imagenet_r` or"):
        recipe.load("imagenet_r")


# -- what comes back ------------------------------------------------------------------------------------


def test_every_setting_has_its_origin_and_its_meaning():
    table = recipe.resolved(recipe.load(write(GOOD), ["stream.step=5"]))
    assert table["method.lr"][:2] == (0.001, "q.yaml:3")
    assert table["stream.step"][:2] == (5, "command line")
    assert table["stream.data.name"][:2] == ("digits", "q.yaml:1")
    assert table["stream.data.size"][:2] == (8, "default")
    assert table["run.name"][:2] == ("q", "default")
    assert all(setting.doc for setting in table.values())


def test_differences_name_what_moves_numbers_and_nothing_else():
    old = recipe.load(write(GOOD))
    same = recipe.load("q.yaml", ["run.out=/x", "run.device=cpu", "run.workers=2", "run.name=b", "method.lr=0.001"])
    assert recipe.differences(old, same) == []
    assert recipe.differences(old, recipe.load("q.yaml", ["evaluate.batch_size=7"])) == []
    new = recipe.load("q.yaml", ["method.lr=1", "stream.data.size=16", "run.precision=bf16"])
    assert recipe.differences(old, new) == [
        ("stream.data.size", 8, 16),
        ("method.lr", 0.001, 1.0),
        ("run.precision", "float32", "bf16"),
    ]
    other = recipe.load("q.yaml", ["method=prototype"])
    assert ("method.name", "mg_clip", "prototype") in recipe.differences(old, other)


def test_a_published_number_knows_in_what_a_run_differs_from_the_recipe_that_states_it():
    write(GOOD + "expect: [{metric: last, value: 80, source: a paper}]")
    asked = ["stream.data.size=16", "run.seed=3", "evaluate.start=true", "run.device=cpu"]
    changed = recipe.load("q.yaml", ["method.lr=1", *asked])
    assert changed.expect[0].stated_with == {"method.lr": 0.001, "stream.data.size": 8}
    assert recipe.load("q.yaml", ["run.seeds=[1, 2]"]).expect[0].stated_with == {}
    once_more = recipe.load(again(changed), ["method.lr=0.001", "models.clip.weights=mine"])
    assert set(once_more.expect[0].stated_with) == {"stream.data.size", "models.clip.weights"}
    assert again(once_more).expect == once_more.expect


def test_where_a_data_set_of_several_lies_is_no_difference():
    text = "stream: {name: multi_domain, data: [digits, cifar10]}\n"
    text += "models: {clip: {name: clip, weights: micro-clip}}\nmethod: rail"
    old = recipe.load(write(text))
    other = recipe.load("q.yaml", ["stream.data=[{name: digits, size: 16}, {name: cifar10, root: /x}]"])
    assert [name for name, *_ in recipe.differences(old, other)] == ["stream.data"]
    placed = recipe.load("q.yaml", ["stream.data=[digits, {name: cifar10, root: /x}]"])
    assert recipe.differences(old, placed) == []


def test_runs_lie_in_a_folder_of_their_name_and_seed():
    loaded = recipe.load("mg_clip/cifar100", ["run.seeds=[4, 5]"])
    assert loaded.folder(5) == Path("runs/mg_clip-cifar100/seed_5")
    assert loaded.for_seed(5).seeds == (5,)


def test_kinds_that_the_method_cannot_answer_are_refused_before_anything_is_loaded():
    text = "stream: {name: steps, data: crumbs, kind: caption}\nmodels: {clip: cube}\nmethod: wobble"
    with pytest.raises(RecipeError, match="method wobble cannot answer tasks of kind caption"):
        recipe.build(recipe.load(write(text)), 0)


def test_a_recipe_is_built_into_its_method_stream_and_models():
    text = (
        "stream: {name: steps, data: crumbs}\nmodels: {clip: {name: cube, weights: w}}\nmethod: {name: wobble, lr: 2}"
    )
    method, stream, models = recipe.build(recipe.load(write(text)), 0)
    assert (method.config.lr, method.clip, stream.name) == (2.0, ("cube", "w"), "steps")
    assert models == {"clip": ("cube", "w")}


def again(loaded: recipe.Recipe) -> recipe.Recipe:
    return recipe.load(write(recipe.to_yaml(loaded), "again.yaml"))


def test_a_written_recipe_reads_back_as_the_same():
    loaded = recipe.load(write(GOOD + "expect: [{metric: last, value: 80, source: 'a: b'}]"), ["run.seeds=[1,2]"])
    assert recipe.differences(loaded, again(loaded)) == []
    assert recipe.to_yaml(again(loaded)) == recipe.to_yaml(loaded)
    assert again(loaded).expect == loaded.expect


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["no", "012", "1e-3", "~", "a: b", "- x", "# c", "null", " lead", "trail ", "'", '"', "{", "é\x85", "<<"]
)
WITHOUT_NUL = TEXT.filter(lambda text: "\0" not in text)
FINITE = st.floats(-config.LARGEST, config.LARGEST)
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXT


@settings(deadline=None)
@given(st.dictionaries(TEXT, SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(TEXT, SCALARS, max_size=3)))
def test_any_tree_written_as_yaml_reads_back_equal(tree):
    from perdure.recipe.source import _Reader

    written = yaml_text.dump(tree)
    if tree:
        assert _Reader(written, file="x").whole() == tree


@settings(deadline=None)
@given(
    labels=st.lists(WITHOUT_NUL, max_size=3),
    lr=st.floats(0, config.LARGEST, exclude_min=True),
    epochs=st.just("auto") | st.integers(1, 10**6),
    deep=st.none() | st.dictionaries(WITHOUT_NUL, FINITE, max_size=2),
)
def test_settings_survive_a_round_trip_through_a_run_folder(labels, lr, epochs, deep):
    loaded = recipe.load(write("stream: {name: steps, data: crumbs}\nmodels: {clip: cube}\nmethod: wobble"))
    stated = {"labels": labels, "lr": lr, "epochs": epochs, "deep": deep}
    assert config.check(recipe.registry.settings("methods", "wobble"), stated)[1] == []
    changed = recipe.Recipe(
        stream=loaded.stream,
        method=config.Named(place="methods", name="wobble", settings=stated),
        models=loaded.models,
        run=loaded.run,
    )
    assert recipe.differences(changed, again(changed)) == []


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from("ab:-[]{}#&*!|>'\"%@`,? \n\t0.1\x00é<=~"), max_size=40))
def test_any_text_is_a_recipe_or_one_message(text):
    Path("fuzz.yaml").write_bytes(text.encode())
    with pytest.raises(RecipeError):
        recipe.load("fuzz.yaml")


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(st.sampled_from("method.lrun=[]{}:'\"& *!01"), max_size=16), max_size=3))
def test_any_override_is_understood_or_one_message(overrides):
    _, wrong = read_overrides(overrides)
    assert len(wrong) <= 2 * len(overrides)
    try:
        recipe.load("mg_clip/cifar100", overrides)
    except RecipeError as error:
        assert "nothing was run" in str(error)
