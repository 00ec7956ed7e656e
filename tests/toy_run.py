"""Runs the toy on a tiny stream as a process of its own: ``python -m tests.toy_run OUT EPOCHS DROPOUT``.

Started by test_run.py, which kills it, and by torch's launcher as several processes.
"""

import sys
from pathlib import Path

from perdure.evaluate import Evaluation
from perdure.loop import run, seed_everything
from perdure.runtime import Runtime, collectives
from perdure.testing import tiny_stream
from tests.toy import Config, Toy

if __name__ == "__main__":
    out, epochs = Path(sys.argv[1]), int(sys.argv[2])
    seed_everything(0)
    method = Toy(Config(epochs=epochs, dropout=float(sys.argv[3])))
    runtime = Runtime(device="cpu", out=out, quiet=True, save_every=0.02, threads=1)
    print("started", flush=True)
    run(method, tiny_stream(test=20), evaluation=Evaluation(batch_size=7), runtime=runtime)
    if runtime.processes > 1:
        collectives._leave()
        print("threads left:", len(list(Path("/proc/self/task").glob("*"))), flush=True)
