"""Every Python and shell block of the documentation runs as it is printed, page by page, in an empty folder.

A block under ``<!-- file: path -->`` is written to that file first. A block under ``<!-- skip: reason -->`` is not run;
the reason is shown to readers and in the test's report.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML as YamlReader

from perdure.settings import config

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"(?:<!-- (file|skip): (.*?) -->\n)?^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page):
    return [match.groups() for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]


YAML = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if YAML.search(p.read_text(encoding="utf-8"))], ids=lambda p: p.name)
def test_the_parts_of_recipes_on_a_page_have_settings_that_exist(page):
    found = []
    for text in YAML.findall(page.read_text(encoding="utf-8")):
        recipe = YamlReader(typ="safe").load(text)
        named = [("streams", recipe.get("stream")), ("methods", recipe.get("method"))]
        named += [("models", model) for model in recipe.get("models", {}).values()]
        found += [(place, value) for place, value in named if value]
    assert found
    assert [fault for place, value in found for fault in config.check_named(place, value, ())] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_block_of_a_page_runs(page, tmp_path):
    python = []
    for mark, value, language, code in blocks(page):
        if mark == "skip":
            print(f"{page.name}: not run ({value}): {code.splitlines()[0]}")
        elif mark == "file":
            (tmp_path / value).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / value).write_text(code, encoding="utf-8")
        elif language == "python":
            python.append(code)
        else:
            run(["bash", "-euo", "pipefail", "-c", code], tmp_path)
    if python:
        run([sys.executable, "-c", "\n".join(python)], tmp_path)


def test_the_last_line_of_continuous_integration_is_the_readmes_test_command():
    command = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert f'pip install -e ".[test]" && {command}\n' in (ROOT / "README.md").read_text(encoding="utf-8")


def run(command, folder):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PATH": path,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
