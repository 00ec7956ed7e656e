"""All that is to be measured on one GPU, in one command.

    python benchmarks/gpu.py                          # one GPU of 80 GB, under 8 minutes
    python benchmarks/gpu.py --quick --device cpu     # small sizes: shows that it runs

Parts come in the order of their worth, each with a time limit; after every row the results are written as JSON and as a
Markdown table beside it. What fails is a row with its error, and the next one is measured.

1. `methods`: every method on its embedded world, one task, against the CPU, in float32 and bf16.
2. `sizes`: real sizes with random weights: ours, the plain schedule and the bare PyTorch step.
3. `waits`: how often a training step makes the host wait for the device; the goal is 0 between lines of the log.
4. `loader`: the share of a step that the model waits for images.

Knows clocks, limits, the card's peak and tables. What is measured is in `gpu_methods.py` and `gpu_sizes.py`.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu_methods
import gpu_sizes
import torch
from torch.utils.flop_counter import FlopCounterMode

RESULTS = Path(__file__).parent / "results"
PEAKS = {  # dense TFLOP/s by the makers' data sheets: bf16, float32 by TF32, float32
    "H100": (989.0, 494.0, 67.0),
    "H200": (989.0, 494.0, 67.0),
    "A100": (312.0, 156.0, 19.5),
}
LIMITS = {"methods": 150, "sizes": 230, "waits": 40, "loader": 40}
"""Seconds."""
Row = dict[str, Any]


class Bench:
    """A device, its clock and its peaks."""

    def __init__(self, device: torch.device, *, quick: bool) -> None:
        self.device, self.quick = device, quick
        self.cuda = device.type == "cuda"
        self.name = torch.cuda.get_device_name(device) if self.cuda else "CPU"
        self.peaks = next((peaks for card, peaks in PEAKS.items() if card in self.name), None)

    def measure(self, call: Callable[[], Any], *, units: int, bf16: bool = False) -> Row:
        """Median seconds of a call that works on `units` images or tokens, its rate, share of the peak and memory."""
        with FlopCounterMode(display=False) as counted:
            call()
        self.wait()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds: list[float] = []
        until = time.perf_counter() + (0.0 if self.quick else 2.0)
        while len(seconds) < (1 if self.quick else 3) or (time.perf_counter() < until and len(seconds) < 20):
            began = time.perf_counter()
            call()
            self.wait()
            seconds.append(time.perf_counter() - began)
        median = sorted(seconds)[len(seconds) // 2]
        row: Row = {"milliseconds": round(1e3 * median, 3), "units a second": round(units / median, 1)}
        row["TFLOP"] = round(counted.get_total_flops() / 1e12, 4)
        if self.peaks is not None:
            peak = self.peaks[0] if bf16 else self.peaks[1 if torch.backends.cuda.matmul.allow_tf32 else 2]
            row["share of peak"] = round(counted.get_total_flops() / median / 1e12 / peak, 4)
        if self.cuda:
            row["peak GiB"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
        return row

    def wait(self) -> None:
        """Until the device has done all that it was told."""
        if self.cuda:
            torch.cuda.synchronize(self.device)


PARTS: dict[str, Callable[[Bench], Iterator[tuple[str, Callable[[], Row]]]]] = {
    "methods": gpu_methods.against_cpu,
    "sizes": gpu_sizes.sizes,
    "waits": gpu_methods.waits,
    "loader": gpu_methods.loader,
}
"""Each gives names and what measures one row."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and a few methods")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    given = parser.parse_args()
    bench = Bench(torch.device(given.device), quick=given.quick)
    rows: list[Row] = []
    for part in given.parts:
        for row in within(900 if given.quick else LIMITS[part], part, PARTS[part](bench)):
            rows.append(row)
            print(json.dumps(row), flush=True)
            write(given.out, bench, rows)
    failed = [row for row in rows if "error" in row]
    if failed and given.quick:
        raise SystemExit(f"{len(failed)} rows failed")


def within(limit: float, part: str, measures: Iterator[tuple[str, Callable[[], Row]]]) -> Iterator[Row]:
    """Rows of a part; past its limit what runs is stopped, and the rest is named as left out."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"past the part's limit of {limit:.0f} s")

    until = time.monotonic() + limit
    signal.signal(signal.SIGALRM, stop)
    for what, measure in measures:
        row: Row = {"part": part, "what": what}
        left = until - time.monotonic()
        if left < 1:
            yield row | {"error": "left out: no time left in this part"}
            continue
        signal.setitimer(signal.ITIMER_REAL, left)
        try:
            row |= measure()
        except Exception as error:  # one row's fault must not take the others
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        yield row


def write(file: Path, bench: Bench, rows: list[Row]) -> None:
    """JSON, and the same as tables."""
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = {"device": bench.name, "torch": torch.__version__, "quick": bench.quick}
    file.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    lines = [f"# {bench.name}, torch {torch.__version__}{', quick' if bench.quick else ''}"]
    for part in dict.fromkeys(row["part"] for row in rows):
        own = [row for row in rows if row["part"] == part]
        names = list(dict.fromkeys(name for row in own for name in row if name != "part"))
        lines += ["", f"## {part}", "", "|".join(["", *names, ""]), "|".join(["", *["---"] * len(names), ""])]
        lines += ["|".join(["", *(str(row.get(name, "")) for name in names), ""]) for row in own]
    file.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
