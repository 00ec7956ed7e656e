"""The lock of a run's folder: one process at a time, and what a dead one leaves is taken over."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from perdure.errors import BusyError
from perdure.run_folder import lock

HOLD = "import sys, time; from pathlib import Path; from perdure.run_folder import lock\n"
HOLD += "with lock.held(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"


@pytest.fixture
def other(tmp_path):
    """Another process that holds `tmp_path / 'run'`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def leave(folder: Path, silent: float = 0.0, **differences) -> None:
    """A lock like this process's own, but for some parts, last touched `silent` seconds ago."""
    folder.mkdir(exist_ok=True)
    file = folder / lock.NAME
    file.write_text(json.dumps(asdict(replace(lock._myself(), **differences))))
    then = file.stat().st_mtime - silent
    os.utime(file, (then, then))


def is_taken_over(folder: Path) -> bool:
    try:
        with lock.held(folder):
            return True
    except BusyError:
        return False


def test_a_second_process_is_refused_by_name(tmp_path, other):
    with pytest.raises(BusyError) as refused, lock.held(tmp_path / "run"):
        pass
    found = json.loads((tmp_path / "run" / "lock").read_text())
    for part in (f"process {other.pid} on {found['host']}, since {found['since']}", "run.name", str(tmp_path / "run")):
        assert part in str(refused.value)
    assert lock.holder(tmp_path / "run").process == other.pid
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_a_killed_process_loses_the_folder_at_once(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert lock.holder(tmp_path / "run") is None
    assert is_taken_over(tmp_path / "run")


def test_a_later_process_with_the_same_number_does_not_hold_the_folder(tmp_path):
    leave(tmp_path, after_boot=lock._myself().after_boot - 100)
    assert is_taken_over(tmp_path)


@pytest.mark.parametrize("elsewhere", [{"host": "another"}, {"booted": psutil.boot_time() - 9999}])
def test_another_host_and_one_before_a_reboot_hold_it_while_they_show_signs_of_life(tmp_path, elsewhere):
    leave(tmp_path, **elsewhere)
    with pytest.raises(BusyError, match="If it is dead, the folder is free 120 s"), lock.held(tmp_path):
        pass
    leave(tmp_path, silent=lock.SILENT_FOR + 1, **elsewhere)
    assert is_taken_over(tmp_path)


def test_a_torn_lock_is_taken_over(tmp_path):
    (tmp_path / lock.NAME).write_text('{"host": "an')
    assert is_taken_over(tmp_path)


def test_the_owner_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "TOUCH_EVERY", 0.01)
    with lock.held(tmp_path):
        file = tmp_path / lock.NAME
        os.utime(file, (1, 1))
        for _ in range(500):
            if file.stat().st_mtime > 1:
                break
            threading.Event().wait(0.01)
        assert file.stat().st_mtime > 1


def contend(folder: Path, start: threading.Barrier, leaving: threading.Barrier, won: list[int]) -> None:
    start.wait()
    try:
        with lock.held(folder):
            won.append(1)
            leaving.wait()
    except BusyError:
        leaving.wait()


def test_of_many_that_find_a_stale_lock_one_takes_it(tmp_path):
    for _ in range(40):
        leave(tmp_path, process=2**22 + 1)
        won: list[int] = []
        parts = threading.Barrier(4), threading.Barrier(4), won
        threads = [threading.Thread(target=contend, args=(tmp_path, *parts)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        assert won == [1]


def test_a_file_system_without_hard_links_has_locks_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    with lock.held(tmp_path), pytest.raises(BusyError), lock.held(tmp_path):
        pass


def test_a_folder_that_nothing_was_put_into_goes_again(tmp_path):
    with lock.held(tmp_path / "a" / "b"):
        assert lock.holder(tmp_path / "a" / "b").process == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "differences",
    [{"process": -5}, {"process": 10**30}, {"process": "x"}, {"booted": "x"}, {"booted": float("nan")}],
    ids=str,
)
def test_a_lock_that_holds_something_else_is_taken_over(tmp_path, differences):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / lock.NAME).write_text(json.dumps(asdict(lock._myself()) | differences))
    assert lock.holder(folder) is None
    with lock.held(folder):
        assert lock.holder(folder) is not None


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b"3"], ids=lambda c: str(c[:8]))
def test_a_lock_that_is_no_lock_is_taken_over(tmp_path, content):
    (tmp_path / lock.NAME).write_bytes(content)
    assert lock.holder(tmp_path) is None
    with lock.held(tmp_path):
        assert lock.holder(tmp_path) is not None
