"""Methods of instruction tuning on microworld's eight tasks, with micro-llava or with a Qwen2-VL of its size.

    python tools/micro_qwen2_vl.py DIR/micro-qwen2-vl
    python benchmarks/instruction_methods.py run --work DIR --seeds 0 1
    python benchmarks/instruction_methods.py run --work DIR --weights micro-llava olora moelora hide lora_router
    python benchmarks/instruction_methods.py table --work DIR --out benchmarks/results/instruction_methods

Recipes are those of the names, `*/microworld`, with another model. Data, numbers and table are `sefe_microworld`'s.
Runs that are there are left as they are. Does not know methods.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import sefe_microworld

from perdure.api import run as run_recipe

METHODS = {
    **{name: sefe_microworld.METHODS[name] for name in ("zero_shot", "lora", "sefe", "replay", "multitask")},
    **{name: f"{name}/microworld" for name in ("olora", "moelora", "hide", "lora_router")},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("names", nargs="*", help=", ".join(METHODS))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", help="micro-llava, or a folder [micro-qwen2-vl below --work]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--set", nargs="*", default=[], help="further key=value of the recipes")
    parser.add_argument("--out", type=Path, help="of the table, without ending")
    given = parser.parse_args()
    weights = given.weights or str(given.work / "micro-qwen2-vl")
    runs = given.work / f"runs_{Path(weights).name}"
    if given.what == "table":
        rows = sefe_microworld.cells(runs)
        print(sefe_microworld.table(rows))
        if given.out is not None:
            sefe_microworld.write_csv(given.out.with_suffix(".csv"), rows)
        return
    root = given.work / "coin_0"
    if not (root / "annotations").exists():
        sefe_microworld.make_data(root, 0)
    role = "llava" if weights == "micro-llava" else "vlm"
    for seed in given.seeds:
        for name in given.names or METHODS:
            began = time.process_time()
            changes = [f"models.llm={{name: {role}, weights: {weights}, dtype: float32}}", f"stream.root={root}"]
            changes += [f"run.out={runs}", f"run.name={name}", f"run.seeds=[{seed}]", *given.set]
            run_recipe(METHODS[name], changes)
            print(f"{name} seed {seed}: {time.process_time() - began:.0f} s of processor time", flush=True)


if __name__ == "__main__":
    main()
