"""The benchmark for GPUs runs from end to end where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_benchmark_for_gpus_measures_every_part_on_a_cpu(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--quick", "--device", "cpu"]
    command += ["--out", str(tmp_path / "gpu.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert done.returncode == 0, [row for row in rows if "error" in row] or done.stderr[-2000:]
    assert {row["part"] for row in rows} == {"methods", "sizes", "waits", "loader"}
    assert all("error" not in row for row in rows)
    assert "## sizes" in (tmp_path / "gpu.md").read_text()
