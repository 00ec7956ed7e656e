"""The site: it builds without a dead link, lists every method once, and states every setting with its meaning."""

import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Interval
from pydantic import Field

from perdure.settings import registry
from perdure.settings.config import Named

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
BUILDER = all(find_spec(name) for name in ("zensical", "mkdocstrings", "latex2mathml"))
needs_builder = pytest.mark.skipif(not BUILDER, reason='the site needs: pip install -e ".[docs]"')


def listed():
    from tools import site_reference

    return {page.stem: site_reference.methods_of(page.read_text(encoding="utf-8")) for page in PAGES}


def test_every_method_is_on_the_page_of_exactly_one_family():
    pages = listed()
    assert all(pages.values()), f"no table below `## Methods`: {[page for page, names in pages.items() if not names]}"
    assert sorted(name for names in pages.values() for name in names) == registry.names("methods")


def test_every_family_of_the_code_has_a_page():
    folders = (ROOT / "src" / "perdure" / "families").glob("*/__init__.py")
    assert sorted(page.stem for page in PAGES) == sorted(folder.parent.name for folder in folders)


def test_a_page_of_a_family_has_a_figure_equations_and_results():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert "](../figures/" in text, f"{page.name} has no figure"
        assert " equations\n" in text and "$" in text, f"{page.name} has no equations"
        results = text.partition("\n## Results\n")[2].partition("\n## ")[0]
        assert "benchmarks/results/" in results, f"{page.name} shows no result"


@pytest.mark.parametrize("place", registry.PLACES)
def test_every_setting_of_everything_is_in_the_reference_with_its_meaning(place):
    from tools import site_reference

    for name in registry.names(place):
        rows = list(site_reference._rows(registry.settings(place, name)))
        assert {row[0].strip("`") for row in rows} >= set(registry.field_docs(place, name))
        assert all(meaning for _, _, meaning, _ in rows), f"{place}/{name}: a setting has no docstring"


def test_types_are_in_words():
    from tools import site_reference

    @dataclass(frozen=True, kw_only=True)
    class Inside:
        share: Annotated[float, Field(gt=0, lt=1)] = 0.5

    seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]
    words = {seed: "integer, ≥ 0, ≤ 2^63 - 1", Inside | None: "settings or null", tuple[str, ...]: "list of text"}
    words |= {Literal["a", "b"] | None: "`a`, `b` or null", Annotated[Named, "data"]: "a name of [data](data.md)"}
    assert {hint: site_reference._type(hint).replace("\N{NO-BREAK SPACE}", " ") for hint in words} == words
    assert site_reference._inner(seed) is None and site_reference._inner(Inside | None) is Inside


@needs_builder
def test_formulas_become_mathml_and_code_stays():
    from tools import make_site

    page = "Of $a_i$ and `$b$`, $2\\,$MSE:\n\n```bash\necho $HOME $(pwd)\n```\n\n$$x\n= 1$$\n"
    made = make_site.transformed(page, source=PAGES[0], places={PAGES[0]: PAGES[0]}, faults=[])
    assert made.count("<math") == 3 and made.count("<span><math") == 2 and 'display="block"' in made
    assert "`$b$`" in made and "echo $HOME $(pwd)" in made


@needs_builder
def test_links_follow_their_pages_and_dead_ones_are_faults():
    from tools import make_site

    places, faults = make_site.published(), []
    page = "[a](../../benchmarks/results/claims.md#x) [b](../../pyproject.toml) [c](nowhere.md)"
    made = make_site.transformed(page, source=ROOT / "docs" / "methods" / "clip.md", places=places, faults=faults)
    assert made == "[a](../results/claims.md#x) b c"
    assert faults == ["docs/methods/clip.md: nowhere.md is not there"]


@needs_builder
@pytest.mark.parametrize("wrong", [r"\nonsense", r"$a = \max"])
def test_a_formula_that_cannot_be_drawn_is_a_fault(wrong):
    from tools import make_site

    faults: list[str] = []
    page = rf"$\alpha$, {wrong if wrong[0] == '$' else f'${wrong}$'} - $ and `$\code$`"
    make_site.transformed(page, source=PAGES[0], places={PAGES[0]: PAGES[0]}, faults=faults)
    assert faults == [f"docs/methods/{PAGES[0].name}: {wrong} is not known as a formula"]


def test_links_of_the_readme_lead_somewhere():
    """The site's builder does not read it. Headings become anchors as GitHub makes them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#([\w-]+))?\)", text) + re.findall(r'src="([^"]+)"()', text)
    assert len(links) > 20
    for path, anchor in links:
        assert (ROOT / path).exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings], f"{path}#{anchor}"


@needs_builder
@pytest.mark.slow
def test_the_site_builds_without_a_dead_link_or_anchor_and_fetches_nothing():
    built = subprocess.run([sys.executable, "-m", "tools.make_site"], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    fetched = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=[\"']?https?://")
    made = list((ROOT / "build" / "site").rglob("*.html"))
    assert len(made) > 50 and not [file for file in made if fetched.search(file.read_text(encoding="utf-8"))]
    page = (ROOT / "build" / "site" / "methods" / "clip.html").read_text(encoding="utf-8")
    assert "<math" in page and 'src="../figures/clip.svg"' in page and 'href="../reference/clip.html#mg_clip"' in page
    settings = (ROOT / "build" / "site" / "reference" / "clip.html").read_text(encoding="utf-8")
    assert "text_softmax" in settings
    assert "perdure.api.run" in (ROOT / "build" / "site" / "python.html").read_text(encoding="utf-8")
