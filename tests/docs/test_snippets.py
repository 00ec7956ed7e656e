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

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"(?:<!-- (file|skip): (.*?) -->\n)?^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page):
    return [match.groups() for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]


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
