"""Learns the tiny instruction tasks with SEFE as a process of its own: ``python -m tests.instruction_run OUT``.

Started by test_sefe_method.py, alone and by torch's launcher as several processes.
"""

import sys
from dataclasses import replace
from pathlib import Path

from perdure.checkpoint import save
from perdure.methods.sefe import Config, Sefe
from perdure.run import run, seed_everything
from perdure.runtime import Runtime
from tests.tiny_instruction import TUNING, tiny_llava, tiny_tasks

if __name__ == "__main__":
    out = Path(sys.argv[1])
    seed_everything(0)
    tuning = replace(TUNING, dropout=0, mean="conversation", batch_size=4, epochs=2)
    method = Sefe(Config(tuning=tuning, fraction=0.1), llm=tiny_llava())
    runtime = Runtime(device="cpu", out=out, quiet=True, threads=1)
    run(method, tiny_tasks(train=7), runtime=runtime)
    if runtime.main:
        save(out / "state.safetensors", method.state_dict())
