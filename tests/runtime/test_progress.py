"""What a person sees of a run: where it is, how fast it goes, how long it still takes."""

from __future__ import annotations

import io
import os
import re

import pytest

from perdure.errors import DataError, Interrupted
from perdure.loop import run, seed_everything
from perdure.runtime import Runtime, progress
from perdure.runtime.progress import Outlook, Progress, clock
from perdure.testing import tiny_stream
from perdure.types import Evaluation
from tests.toy import Config, Toy


def test_time_left_by_hand(monkeypatch):
    """10 s for 100 examples learned, 2 s for 20 tested: 200 and 40 + 60 are left, 20 + 10 s; then two runs of 42 s."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    outlook = Outlook([100, 100, 100], [20, 40, 60])
    assert outlook.left() is None
    outlook.note(0, 10.0, 2.0)
    assert outlook.left() == pytest.approx(20 + 10)
    now[0] = 4.0  # in the second task
    assert outlook.left() == pytest.approx(26)
    outlook.runs = 2
    assert outlook.left() == pytest.approx(26 + 2 * (30 + 12))
    outlook.runs, now[0] = 0, 99.0
    assert outlook.left() == 0
    outlook.note(2, 10.0, 6.0)
    assert outlook.left() == 0


def test_learning_nothing_takes_no_time():
    outlook = Outlook([0, 0], [10, 10])
    outlook.note(0, 0.0, 5.0)
    assert outlook.left() == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_live_lines_fit_the_terminal_and_say_stage_step_rate_memory_and_the_whole_runs_time(width):
    shown = Progress(
        "seed 1 (2 of 3), task 2 of 5: lora", total=96, show=False, whole=lambda: 200, memory=lambda: 2**30
    )
    for _ in range(12):
        shown.advance(loss=0.5)
    lines = shown.lines(shown.began + 6, width)
    assert len(lines) == 2 and max(map(len, lines)) <= width
    if width >= 60:
        assert lines[0] == "seed 1 (2 of 3), task 2 of 5: lora  12/96 loss 0.5"
        assert "2.00 it/s, 0:42 left; run 3:20 left, 1.0 GiB" in lines[1]
    plain = shown.line(shown.began + 6)
    assert plain == "seed 1 (2 of 3), task 2 of 5: lora: 12/96 loss 0.5 2.00 it/s, 0:42 left; run 3:20 left"


def test_clock():
    assert [clock(s) for s in (0.4, 75, 3723)] == ["0:00", "1:15", "1:02:03"]


def test_short_stages_do_not_flicker_and_long_ones_leave_nothing_behind(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("short", total=3) as shown:
        for _ in range(3):
            shown.advance()
    assert terminal.getvalue() == ""
    monkeypatch.setattr(progress, "LIVE_AFTER", -1.0)
    monkeypatch.setattr(progress, "REDRAW", -1.0)
    with Progress("long", total=3) as shown:
        for _ in range(3):
            shown.advance()
    assert "long  3/3" in terminal.getvalue()


def test_each_finished_task_is_a_line_with_its_scores_on_the_screen_and_in_the_log(tmp_path, capsys):
    for quiet in (False, True):
        out = tmp_path / str(quiet)
        seed_everything(0)
        runtime = Runtime(device="cpu", out=out, quiet=quiet)
        runtime.of_runs = "seed 0 (1 of 3)"
        scores = run(Toy(Config(epochs=1)), tiny_stream(tasks=2), evaluation=Evaluation(), runtime=runtime)
        said = capsys.readouterr().err.splitlines()
        log = (out / "log.txt").read_text().splitlines()
        assert [line[20:] for line in log] == said if not quiet else not said
        assert all(
            re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d seed 0 \(1 of 3\), task \d of 2: accuracy ", x) for x in log
        )
        values = {(row["after"], row["asked"]): row["values"]["accuracy"] for row in scores.rows}
        assert f"accuracy {values[0, 0]:.2f} on its own, 0:0" in log[0]
        mean = (values[1, 0] + values[1, 1]) / 2
        assert f"accuracy {mean:.2f} on 2 tasks, {values[1, 1]:.2f} on its own, 0:0" in log[1]


def test_a_run_that_goes_on_says_task_and_step_and_knows_its_times(tmp_path, capsys):
    def stopped_at(task, steps):
        class Stops(Toy):
            def preprocess(self, example, training):
                runtime.stop_requested = runtime.stop_requested or (training and runtime.task == task)
                return super().preprocess(example, training)

        return Stops

    seed_everything(0)
    runtime = Runtime(device="cpu", out=tmp_path)
    with pytest.raises(Interrupted, match="stopped in task 2 of 3: train, step 1 of "):
        run(stopped_at(1, 1)(Config(epochs=2)), tiny_stream(), evaluation=Evaluation(), runtime=runtime)
    capsys.readouterr()
    seed_everything(0)
    runtime = Runtime(device="cpu", out=tmp_path)
    run(Toy(Config(epochs=2)), tiny_stream(), evaluation=Evaluation(), runtime=runtime)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "resuming after task 1 of 3"
    assert re.fullmatch(r"resuming in task 2 of 3: train, step 1 of \d+", said[1])
    assert len(said) == 4 and "left" in said[2] and "left" not in said[3]


@pytest.mark.parametrize("made", [os.mkdir, os.mkfifo])
def test_something_else_in_the_place_of_the_log_is_one_message(made, tmp_path):
    made(tmp_path / "log.txt")
    with pytest.raises(DataError, match=r"log\.txt: this is a"):
        Runtime(device="cpu", out=tmp_path, quiet=True).say("a line")
