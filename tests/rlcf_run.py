"""A run of two test-time methods on microworld, in as many processes as it is launched with; argument: the folder."""

from __future__ import annotations

import sys
from pathlib import Path

from perdure.config import Named
from perdure.evaluate import Evaluation
from perdure.run import run
from perdure.runtime import Runtime


def main(out: Path) -> None:
    styles = [
        {"name": "microworld", "style": s, "train_per_class": 0, "test_per_class": 1} for s in ("plain", "sketch")
    ]
    stream = Named(place="streams", name="shifted_tests", settings={"data": styles, "limit": 7}).build()
    for name in ("rlcf_prompt", "rlcf_encoder"):
        clips = {
            role: Named(place="models", name="clip", settings={"weights": weights}).build()
            for role, weights in (("policy", "micro-clip"), ("reward", "micro-clip-reward"))
        }
        method = Named(place="methods", name=name, settings={"views": 8, "selection": 0.3}).build(**clips)
        runtime = Runtime(device="cpu", quiet=True, out=out / name)
        run(method, stream, plan="current", evaluation=Evaluation(batch_size=3), runtime=runtime)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
