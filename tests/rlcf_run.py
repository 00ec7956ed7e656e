"""A run of two test-time methods on microworld, in as many processes as it is launched with.

Arguments: the folder; and, to be killed in the middle of a test set, a method and after how many batches.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from perdure.evaluate import Evaluation
from perdure.loop import run, seed_everything
from perdure.runtime import Runtime
from perdure.settings.config import Named


def main(out: Path, dying: str = "", batches: str = "0") -> None:
    styles = [
        {"name": "microworld", "style": s, "train_per_class": 0, "test_per_class": 1} for s in ("plain", "sketch")
    ]
    stream = Named(place="streams", name="shifted_tests", settings={"data": styles, "limit": 7}).build()
    seed_everything(0)
    for name in ("rlcf_prompt", "rlcf_encoder"):
        clips = {
            role: Named(place="models", name="clip", settings={"weights": weights}).build()
            for role, weights in (("policy", "micro-clip"), ("reward", "micro-clip-reward"))
        }
        method = Named(place="methods", name=name, settings={"views": 8, "selection": 0.3}).build(**clips)
        if name == dying:
            method.predictor = mortal(method.predictor, int(batches))
        runtime = Runtime(device="cpu", quiet=True, out=out / name)
        run(method, stream, evaluation=Evaluation(plan="current", batch_size=3), runtime=runtime)


def mortal(predictor, batches: int):
    """The predictor of a process that gets SIGKILL when it is asked for one batch more than `batches`."""

    def made(query):
        predict, left = predictor(query), [batches]

        def counted(batch):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return predict(batch)

        return counted

    return made


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
