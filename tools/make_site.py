"""The documentation as a site: pages are gathered in `build/docs`, and built into `build/site`, which opens offline.

    python -m tools.make_site                # needs: pip install -e ".[docs]"
    python -m http.server -d build/site

Knows where pages lie in the repository and how they become pages of the site: formulas become MathML, links are
followed to where their page is, tables of settings are made from the source (`tools.site_reference`). A dead link, a
dead anchor, or a page that the navigation of `mkdocs.yml` lacks, ends it with exit code 1. Does not know what pages
are about.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from latex2mathml.converter import convert

from tools import site_reference

ROOT = Path(__file__).parents[1]
STAGED = ROOT / "build" / "docs"
CODE = re.compile(r"^(?: *)```.*?^ *```$|``.+?``|`[^`\n]+`", re.MULTILINE | re.DOTALL)
DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
INLINE = re.compile(r"(?<![\\$\w])\$(?=\S)([^$\n]*(?:\n(?!\n)[^$\n]*)?)(?<=\S)\$(?!\d)")
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)")
MARK = re.compile(r"^<!-- (file|skip): (.*?) -->\n```(\w+)\n", re.MULTILINE)
NAV = re.compile(r"^\s+- (?:[^:\n]+: )?([\w/.-]+\.md)$", re.MULTILINE)


UNKNOWN = re.compile(r"<m[inot][^>]*>(\\[a-zA-Z]+)|(\$[^$\n]*\\[a-zA-Z]+)")
"""A command that the converter leaves as it is, and a formula that it was not given: a dollar beside a space."""
COLOR = re.compile(r"\x1b\[[\d;]*m")


class Faults(Exception):
    """What is wrong with the pages, a line each."""


def main() -> int:
    try:
        stage()
    except Faults as faults:
        print(faults, file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = COLOR.sub("", built.stdout + built.stderr).partition("Traceback")[0].strip()
    print(said, file=sys.stderr if built.returncode else sys.stdout)
    return 1 if built.returncode else 0


def stage() -> None:
    """Write all pages into `build/docs`."""
    shutil.rmtree(STAGED, ignore_errors=True)
    places = published()
    faults: list[str] = []
    for source, page in places.items():
        target = STAGED / page
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".md":
            shutil.copyfile(source, target)
            continue
        text = source.read_text(encoding="utf-8")
        if page.parent.name == "methods":
            text = site_reference.with_links_to_settings(text, family=page.stem)
        target.write_text(transformed(text, source=source, places=places, faults=faults), encoding="utf-8")
    for page, text in site_reference.pages(ROOT).items():
        target = STAGED / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    faults += _not_in_navigation()
    if faults:
        raise Faults("\n".join(faults))


def published() -> dict[Path, PurePosixPath]:
    """Files of the repository that the site holds, and where."""
    docs = ROOT / "docs"
    found = {file: PurePosixPath(file.relative_to(docs)) for file in sorted(docs.rglob("*")) if file.is_file()}
    results = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    found |= {file: PurePosixPath("results") / file.name for file in results}
    return found | {ROOT / f"{name}.md": PurePosixPath(f"{name.lower()}.md") for name in ("CHANGELOG", "CONTRIBUTING")}


def transformed(text: str, *, source: Path, places: dict[Path, PurePosixPath], faults: list[str]) -> str:
    """A page of the repository as the site's builder reads it; dead links are added to `faults`."""
    text = MARK.sub(_marked, text)
    made = [part if is_code else mathml(part) for part, is_code in _parts(text)]
    prose = "".join(part for part, (_, is_code) in zip(made, _parts(text)) if not is_code)
    if wrong := UNKNOWN.search(prose):
        faults.append(f"{source.relative_to(ROOT)}: {wrong[1] or wrong[2]} is not known as a formula")
    return "".join(
        part if is_code else LINK.sub(lambda m: _link(m, source, places, faults), part)
        for part, (_, is_code) in zip(made, _parts(text))
    )


def mathml(text: str) -> str:
    """Formulas between dollars, as GitHub reads them, become MathML, which browsers draw without a script."""
    text = DISPLAY.sub(lambda m: f'<div class="formula">{convert(m.group(1).strip(), display="block")}</div>', text)
    return INLINE.sub(lambda m: f"<span>{convert(m.group(1))}</span>", text)  # bare, it would begin a block of its own


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """The text in pieces, and which of them are code."""
    end = 0
    for match in CODE.finditer(text):
        yield text[end : match.start()], False
        yield match.group(), True
        end = match.end()
    yield text[end:], False


def _marked(match: re.Match[str]) -> str:
    kind, value, language = match.groups()
    if kind == "file":
        return f'```{language} title="{value}"\n'
    return f"*Not run by the tests: {value}.*\n\n```{language}\n"


def _link(match: re.Match[str], source: Path, places: dict[Path, PurePosixPath], faults: list[str]) -> str:
    """A link to another page of the site; one to a file that only the repository holds becomes text."""
    words, address = match.groups()
    path, hash_, anchor = address.partition("#")
    if not path or "://" in address or path.startswith("mailto:"):
        return match.group()
    file = (source.parent / path).resolve()
    here = places[source].parent
    if file in places:
        return f"{words}({os.path.relpath(places[file], here)}{hash_}{anchor})"
    if path.startswith("reference/") or "/reference/" in path or path in site_reference.GENERATED:
        return match.group()  # made by `site_reference`; the builder checks it
    if not file.exists():
        faults.append(f"{source.relative_to(ROOT)}: {address} is not there")
    return words[1:-1]


def _not_in_navigation() -> list[str]:
    listed = set(NAV.findall((ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    staged = {str(file.relative_to(STAGED)) for file in STAGED.rglob("*.md")}
    lacking = [f"mkdocs.yml: the navigation lacks {page}" for page in sorted(staged - listed)]
    return lacking + [f"mkdocs.yml: {page} is not there" for page in sorted(listed - staged)]


if __name__ == "__main__":
    raise SystemExit(main())
