"""Dynamos, its streams and the rehearsal baselines equal what the published code computed, file by file.

Every ``.npz`` in the folder must match one of `CHECKS`: a file that nothing checks is a failure.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import golden_baselines as baselines
import golden_gates as gates
import golden_runs as runs
import golden_streams as streams
import pytest

CHECKS: dict[str, Callable] = {
    r"gate_.*": gates.gate,
    r"block_.*": gates.block,
    r"net.*": gates.net,
    r"reward_.*": gates.reward,
    r"proto_.*": gates.prototype,
    r"step.*": runs.step,
    r"run_.*": runs.run,
    r"metrics_.*": runs.metrics,
    r"evaluate_masking.*": runs.masking,
    r"reservoir.*": runs.reservoir,
    r"mnist360_real_schedule.*": streams.schedule,
    r"mnist360_small.*": streams.small,
    r"base_agem_r.*": baselines.agem_r,
    r"base_clser.*": baselines.cls_er,
    r"base_der": baselines.der,
    r"base_derpp": baselines.derpp,
    r"base_er": baselines.er,
    r"base_er_ace": baselines.er_ace,
    r"base_ewc_on": baselines.ewc_online,
    r"base_gem": baselines.gem,
    r"base_icarl": baselines.icarl,
    r"base_lwf": baselines.lwf,
    r"base_si": baselines.si,
}


def pytest_generate_tests(metafunc) -> None:
    if "name" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden") / "dynamos"
        metafunc.parametrize("name", sorted(file.stem for file in folder.glob("*.npz")) or ["absent"])


def test_equals_the_published_code(golden, name: str) -> None:
    folder = golden("dynamos")
    found = [check for pattern, check in CHECKS.items() if re.fullmatch(pattern, name)]
    if not found:
        pytest.fail(f"{name}.npz is there and nothing checks it")
    found[0](folder / f"{name}.npz")


def test_every_check_has_a_file(golden) -> None:
    names = [file.stem for file in golden("dynamos").glob("*.npz")]
    idle = [pattern for pattern in CHECKS if not any(re.fullmatch(pattern, name) for name in names)]
    assert not idle
