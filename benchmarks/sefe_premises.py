"""Premises I1 to I4 of docs/worlds.md: what the world of instruction tuning allows.

    python benchmarks/sefe_microworld.py data --work DIR --world 100
    python benchmarks/sefe_microworld.py run multitask lora --seeds 0 --work DIR --world 100
    python benchmarks/sefe_premises.py --work DIR --world 100

DIR is one of its own: runs are told apart by method and seed, not by world. Reads the data and the finished runs of
those two; learns nothing. Knows what can be guessed without a picture and the factors of updates that runs leave. Does
not know ASD or RegLoRA.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from sefe_microworld import cells, summary

from perdure.data.microworld.scenes import COLORS, FILLS, PLACES, SHAPES, SIZES
from perdure.metrics.vqa import box_iou, parse_box, record_values
from perdure.streams import instruction
from perdure.types import Task

KEY = 0.02
"""Share of a matrix's elements that RegLoRA marks."""
NAMES = re.compile(r"\b(" + "|".join((*PLACES, *SHAPES, *FILLS, *COLORS, *SIZES, "an?")) + r")\b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--world", type=int, default=100)
    given = parser.parse_args()
    rows = cells(given.work / "runs")
    stream = instruction.build(instruction.Config(root=given.work / f"coin_{given.world}"))
    if missing := {"multitask", "lora"} - {r["run"] for r in rows}:
        parser.error(
            f"no finished run of {', '.join(sorted(missing))} in {given.work / 'runs'}: see above how to make it"
        )
    together = {r["task"]: r["value"] for r in rows if r["run"] == "multitask" and r["metric"] == "answer_accuracy"}
    for task in stream:
        least, found = chance(task), together[task.name]
        print(f"{task.name:<10} chance {least:5.1f}  multitask {found:5.1f}, {found / least:.1f} times")
    print(f"I1 multitask, mean: {np.mean(list(together.values())):.1f}")
    print(f"I3 sequential: {summary([r for r in rows if r['run'] == 'lora'])}")
    folders = sorted((given.work / "runs" / "lora").glob("seed_*/adapters/*"))
    shares = [100 * one for folder in folders for one in key_shares(folder)]
    print(f"I4 of the squared norm: {np.mean(shares):.1f} % (of a matrix {min(shares):.1f} to {max(shares):.1f})")


def chance(task: Task) -> float:
    """Percent of the test questions that are answered by the question alone and the training answers."""
    alike: dict[str, list[str]] = defaultdict(list)
    for example in task.train:
        question, answer = (message["value"] for message in example.inputs["conversations"])
        alike[pattern(question)].append(answer)
    values = []
    for example in task.test:
        question, target = example.inputs["text"], example.target
        guesses = options(question) or [commonest(alike[pattern(question)])]
        records = [{"id": example.id, "prediction": guess, "target": target["answer"]} for guess in guesses]
        values.append(np.mean(record_values(records, target["scorer"])))
    return 100 * float(np.mean(values))


def pattern(question: str) -> str:
    """The question without image mark, options and the names of things."""
    return NAMES.sub("_", question.replace("<image>", "").strip())


def options(question: str) -> list[str]:
    """Letters or words that the question lists; none if it lists none."""
    if letters := re.findall(r"^([A-E])\. ", question, re.M):
        return letters
    found = re.search(r"Reference OCR token: (.*)", question)
    return found[1].split(", ") if found else []


def commonest(answers: list[str]) -> str:
    """The answer that most are equal to; of boxes, the one that most overlap by more than half."""
    boxes = [parse_box(answer) for answer in answers[:200]]
    if not answers or None in boxes:
        return Counter(answers).most_common(1)[0][0] if answers else ""
    near = [sum(box_iou(one, other) > 0.5 for other in boxes) for one in boxes]  # type: ignore[arg-type]
    return answers[int(np.argmax(near))]


def key_shares(folder: Path) -> Iterator[float]:
    """Of each matrix's update, the share of its squared norm that its largest elements hold."""
    tensors: dict[str, Any] = load_file(folder / "adapter_model.safetensors")
    for name, a in tensors.items():
        if "lora_A" in name:
            squares = np.sort((tensors[name.replace("lora_A", "lora_B")] @ a).ravel() ** 2)
            if total := float(squares.sum()):
                yield float(squares[-int(KEY * squares.size) :].sum()) / total


if __name__ == "__main__":
    main()
