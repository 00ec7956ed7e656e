"""The tables of replay.py's results, in Markdown.

    python benchmarks/replay_table.py benchmarks/results/replay*.json

Knows the form of those files. Measures nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main() -> None:
    for file in map(Path, sys.argv[1:]):
        result = json.loads(file.read_text(encoding="utf-8"))
        print(f"## {result['threads']} thread{'s' * (result['threads'] > 1)} ({file.name})\n")
        print(f"{result['machine']}, torch {result['torch']}; {result['seconds']} seconds.\n")
        for part in (training, gates, gem, overhead, inference):
            if part.__name__ in result:
                print(part(result) + "\n")


def training(result: dict[str, Any]) -> str:
    """Images of the stream a second."""
    rows = [
        [
            row["net"],
            row["method"],
            *(row[f"{name}_images_per_second"] for name in ("ours", "plain", "bare")),
            row["ours / plain"],
            f"{row['overhead_percent']} %",
        ]
        for row in result["training"]
    ]
    columns = ["net", "method", "ours, img/s", "plain schedule", "bare step", "ours / plain", "over the bare step"]
    return _table(columns, rows)


def gates(result: dict[str, Any]) -> str:
    """Dynamos beside DER++ on the plain net."""
    rows = [[row["variant"], row.get("images_per_second", ""), row.get("ratio", "")] for row in result["gates"]]
    return _table(["variant", "img/s", "ratio"], rows)


def gem(result: dict[str, Any]) -> str:
    """GEM's step, whose plain schedule writes gradients parameter by parameter."""
    rows = [
        [r[k] for k in ("net", "ours_images_per_second", "plain_images_per_second", "ours / plain")]
        for r in result["gem"]
    ]
    return _table(["net, GEM", "ours, img/s", "plain schedule", "ours / plain"], rows)


def overhead(result: dict[str, Any]) -> str:
    """Milliseconds of a step beyond the bare one, at the beginning and the end of 20 tasks."""
    rows = [[row["method"], row["ms_first_tasks"], row["ms_last_tasks"]] for row in result["overhead"]]
    return _table(["method", "ms beyond the bare step, tasks 1-5", "tasks 16-20"], rows)


def inference(result: dict[str, Any]) -> str:
    """Skipping beside the published and the masked pass."""
    rows = [
        [
            row["images"],
            row["distinct_masks"],
            row["keep_ratio"],
            *(row[f"ms_{name}"] for name in ("published", "dense", "folded", "skipping")),
            row["published / skipping"],
            row["limit_published"],
            row["dense / skipping"],
            row["limit_dense"],
        ]
        for row in result["inference"]
    ]
    return _table(
        [
            "images",
            "masks",
            "keep",
            "published, ms",
            "masked, ms",
            "folded, ms",
            "skipping, ms",
            "published / skipping",
            "by arithmetic",
            "masked / skipping",
            "by arithmetic",
        ],
        rows,
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


if __name__ == "__main__":
    main()
