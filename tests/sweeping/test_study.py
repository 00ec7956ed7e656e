"""A study: five methods, three rates, three seeds, from one command to a LaTeX table, a process killed on its way."""

from __future__ import annotations

import re
import threading
import time

import psutil
import pytest

from perdure.cli import main
from perdure.sweeping import record
from tests.sweeping import small

METHODS = ("sgd", "er", "er_ace", "derpp", "agem_r")
RATES = ("0.01", "0.03", "0.1")


@pytest.mark.slow
def test_from_one_command_to_a_table_with_a_process_killed(tmp_path, monkeypatch, capsys):
    small.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    seen, killed, over = set(), [], threading.Event()

    def kill() -> None:
        """One of the processes, when it is in the middle of the study."""
        while not over.wait(0.05):
            workers = psutil.Process().children()
            seen.update(worker.pid for worker in workers)
            if not killed and len(list(tmp_path.glob("runs/*/*/*/card.json"))) > 4:
                workers[0].kill()
                killed.append(time.monotonic())

    watcher = threading.Thread(target=kill, daemon=True)
    watcher.start()
    words = ["--methods", ",".join(METHODS), "--grid", f"method.lr={','.join(RATES)}", "--seeds", "0,1,2"]
    with pytest.raises(SystemExit) as left:
        main(["sweep", "small.yaml", *words, "method.epochs=1", "--jobs", "2", "--yes"])
    over.set()
    watcher.join()
    shown, said = capsys.readouterr()
    assert left.value.code == 0 and "45 runs of 5 recipes and methods" in said
    assert killed and len(seen) == 3  # two, and the one in the place of the killed one
    known = record.read(tmp_path / "runs/small-sweep")["cells"]
    states = [record.standing(tmp_path / "runs/small-sweep", entry).state for entry in known]
    assert states == ["finished"] * 45
    assert "perdure report runs/small-sweep --table wide --format latex" in shown
    with pytest.raises(SystemExit):
        main(["report", "runs/small-sweep", "--table", "wide", "--metrics", "average,last", "--format", "latex"])
    table = capsys.readouterr().out
    rows = [line for line in table.split("\n") if line.endswith("\\\\")]
    assert len(rows) == 1 + 15 and all(re.search(r"\d\d?\.\d\d \$\\pm\$ \d", row) for row in rows[1:])
    assert {re.split(r" [(&]", row)[0].replace("\\", "") for row in rows[1:]} == set(METHODS)
    assert "% Several settings of a method were compared on test examples" in table
