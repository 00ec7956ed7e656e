"""Learns the tiny instruction tasks with SEFE as a process of its own.

``python -m tests.instruction_run OUT [STEPS] [WEIGHTS]``, started by test_several_processes.py, alone and by launchers
as several processes. It stops after STEPS steps (-1: not), and goes on from there when it is started again. The model
is a tiny LLaVA, or the vision-language model at WEIGHTS.
"""

import sys
from dataclasses import replace
from pathlib import Path

from perdure.checkpoint import save
from perdure.errors import Interrupted
from perdure.loop import run, seed_everything
from perdure.methods.sefe import Config, Sefe
from perdure.models import vlm
from perdure.runtime import Runtime
from tests.tiny_instruction import TUNING, tiny_llava, tiny_tasks


class Stopping(Sefe):
    """Asks the runtime to stop after so many losses."""

    left = -1
    parts: set[bool] = set()
    """Whether a block's weight was in parts, seen before each loss."""

    def learn(self, task, runtime):
        self.runtime = runtime
        super().learn(task, runtime)

    def loss(self, batch):
        self.left -= 1
        if self.left == 0:
            self.runtime.stop_requested = True
        matrix = self.adapters.matrices["layers.0.mlp.up_proj"]
        self.parts = self.parts | {hasattr(matrix.weight, "full_tensor") or matrix.weight.numel() == 0}
        return super().loss(batch)


def main(out: Path, stop_after: int, weights: str = "") -> None:
    seed_everything(0)
    # five conversations in batches of four and parts of two: a process has none, or too few for its parts
    tuning = replace(
        TUNING, dropout=0, mean="conversation", batch_size=4, accumulate=2, epochs=3, gradient_checkpointing=True
    )
    llm = vlm.load(vlm.Config(weights=weights, dtype="float32", tune="language+projector")) if weights else tiny_llava()
    method = Stopping(Config(tuning=tuning, fraction=0.1, weight=100), llm=llm)
    method.left = stop_after
    runtime = Runtime(device="cpu", out=out, quiet=True, threads=1)
    try:
        run(method, tiny_tasks(), runtime=runtime)
    except Interrupted:
        return
    state = method.state_dict()
    if runtime.main:
        save(out / "state.safetensors", state | {"in parts": sorted(method.parts)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else -1, *sys.argv[3:])
