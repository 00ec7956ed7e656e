"""Names are files: found, described and read for their settings without being imported."""

import subprocess
import sys
from dataclasses import fields
from typing import get_args

import pytest
import shop

from perdure.errors import RecipeError
from perdure.settings import registry
from perdure.settings.config import Named, field_types


@pytest.fixture
def broken_shop(tmp_path, monkeypatch):
    """Another package's names; importing any of its modules fails."""
    monkeypatch.syspath_prepend(str(shop.write(tmp_path)))


@pytest.fixture
def working_shop(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(shop.write(tmp_path, importable=True)))
    yield
    shop.forget()


@pytest.mark.parametrize("place", registry.PLACES)
def test_every_name_is_described_and_its_settings_and_their_docs_are_read(place):
    assert registry.names(place)
    for name in registry.names(place):
        about = registry.describe(place, name)
        fields = field_types(registry.settings(place, name))
        docs = registry.field_docs(place, name)
        assert about.summary.endswith("."), name
        undocumented = [field for field in fields if not docs.get(field)]
        assert not undocumented, f"{place}/{name}: {undocumented}"
        assert about.answers or place != "methods", name


def test_reading_all_settings_imports_neither_torch_nor_numpy():
    code = """
import sys
from perdure.settings import registry
for place in registry.PLACES:
    for name in registry.names(place):
        registry.settings(place, name), registry.describe(place, name), registry.field_docs(place, name)
print([m for m in ("torch", "numpy", "transformers", "PIL", "rich", "typer") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_from_source_equal_those_of_the_imported_module():
    read, imported = registry.settings("data", "digits"), registry.load("data", "digits").Config
    assert read is not imported
    assert repr(read()) == repr(imported())
    assert list(field_types(read)) == list(field_types(imported))


@pytest.mark.parametrize("name", registry.names("methods"))
def test_settings_that_a_family_shares_are_read_from_source_as_they_are_imported(name):
    """Names, defaults and types of inherited settings too, each with its docstring."""
    read = registry.settings("methods", name)
    imported = registry.load("methods", name).Config
    assert [f.name for f in fields(read)] == [f.name for f in fields(imported)]
    assert repr(read()) == repr(imported())
    docs = registry.field_docs("methods", name)
    assert set(docs) == {f.name for f in fields(read)} and all(docs.values())


def test_a_method_may_give_a_shared_setting_another_default():
    read = registry.settings("methods", "dynamos")
    assert (read().lr, read().batch_size) == (0.07, 10)
    assert registry.field_docs("methods", "dynamos")["lr"] == "Learning rate of SGD."


def test_an_unknown_name_is_an_error_with_the_nearest_one():
    with pytest.raises(RecipeError, match=r"no method is called `mgclip`\. Did you mean `mg_clip`\?"):
        registry.find("methods", "mgclip")
    with pytest.raises(RecipeError, match="See: perdure list data"):
        registry.find("data", "qqqq")


def test_a_method_is_the_class_that_its_file_is_named_after():
    assert registry.load("methods", "mg_clip").__name__ == "MgClip"


def test_names_of_another_package_are_described_without_importing_it(broken_shop):
    assert "wobble" in registry.names("methods")
    about = registry.describe("methods", "wobble")
    assert about.summary == "Wobble: a method of another package."
    assert about.needs == "1 GB GPU memory."
    assert about.answers == ("answer", "classify")
    assert about.roles == ("clip", "reward")
    assert about.optional_roles == ("reward",)
    assert "wobblekit" not in sys.modules


def test_settings_of_another_package_take_constants_and_classes_from_its_other_files(broken_shop):
    settings = registry.settings("methods", "wobble")
    assert settings().lr == 0.5  # HALF, in wobblekit/shared.py, which imports what is not installed
    assert settings().epochs == 3  # EPOCHS, in the same file
    assert settings().decay.weight == 0.1
    assert registry.field_docs("methods", "wobble")["lr"] == "Learning rate, of the only stage."
    assert "wobblekit" not in sys.modules


def test_things_of_another_package_are_built_from_their_names(working_shop):
    data = Named(place="data", name="crumbs", settings={"size": 8}).build()
    assert data.facts == {"root": "crumbs", "size": 8}
    assert Named(place="models", name="cube").build() == ("cube", "tiny")
    method = Named(place="methods", name="wobble", settings={"epochs": "auto"}).build(clip="c")
    assert (method.config.epochs, method.clip, method.reward) == ("auto", "c", None)


def test_building_with_a_wrong_setting_names_it(working_shop):
    with pytest.raises(RecipeError, match=r"data set crumbs: unknown setting `siz`; did you mean `size`\?"):
        Named(place="data", name="crumbs", settings={"siz": 8}).build()


def test_settings_that_need_a_heavy_import_are_refused_with_file_and_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(shop.write(tmp_path)))
    file = tmp_path / "wobblekit" / "cube.py"
    file.write_text("import torch\n" + file.read_text().replace('= "tiny"', "= torch.nn"))
    with pytest.raises(RecipeError, match=r"cube\.py:1: `Config` needs `torch` of torch"):
        registry.settings("models", "cube")


def test_an_entry_point_to_a_module_that_is_gone_is_an_error_in_words(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(shop.write(tmp_path)))
    (tmp_path / "wobblekit" / "crumbs.py").unlink()
    with pytest.raises(RecipeError, match=r"the module wobblekit\.crumbs is not installed"):
        registry.find("data", "crumbs")


def test_places_are_the_four_of_the_design():
    assert get_args(registry.Place) == registry.PLACES
