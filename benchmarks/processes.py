"""What a training step costs in two processes: ours against a bare DistributedDataParallel step of the same model.

    python -m torch.distributed.run --standalone --nproc_per_node 2 benchmarks/processes.py

Both processes talk through gloo on the CPU. Ours is `training.fit` as it is, with its log, its agreement on signals and
the loss of all processes at every step; the bare one calls forward, backward and step. They take turns in blocks of 20
steps, and the median of the ratios of neighboring blocks counts, since other work on the machine disturbs both alike. A
third schedule sums gradients by one call a parameter and gathers the loss at every step.

Knows clocks and processes. Does not know any method.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from perdure import training
from perdure.loading import TensorBatches
from perdure.runtime import Runtime

RESULTS = Path(__file__).parent / "results" / "processes.json"
LIMIT = 1.1
"""Most that a step of ours may cost, in steps of DistributedDataParallel."""
STEPS = 20
BATCH = 32
SIZES = {
    "many small parameters": {"width": 64, "layers": 12, "tokens": 8},
    "few large parameters": {"width": 384, "layers": 2, "tokens": 8},
}


class Net(nn.Module):
    """A transformer over the tokens of an example."""

    def __init__(self, *, width: int, layers: int, tokens: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=7, help="blocks of 20 steps of each schedule")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    runtime = Runtime(device="cpu", quiet=True, threads=1)  # without a folder: a bare step saves nothing either
    found = {name: measured(runtime, size, given.blocks) for name, size in SIZES.items()}
    if runtime.main:
        given.out.write_text(json.dumps({"processes": runtime.processes, "sizes": found}, indent=1) + "\n")
        for name, values in found.items():
            print(name, json.dumps(values, indent=1))
    assert all(values["ours over bare"] <= LIMIT for values in found.values())


def measured(runtime: Runtime, size: dict[str, int], blocks: int) -> dict[str, Any]:
    """Seconds a step of each schedule and the ratios; all end with the same weights."""
    schedules: dict[str, Callable[..., nn.Module]] = {"bare": bare, "ours": ours, "a call a parameter": by_parameter}
    g = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS * BATCH, size["tokens"], size["width"], generator=g)
    data = {"x": x, "y": torch.randint(10, (STEPS * BATCH,), generator=g)}
    seconds, work = ({name: list[float]() for name in schedules} for _ in range(2))
    nets = {name: schedule(runtime, size, data, "warm up") for name, schedule in schedules.items()}
    difference = max(_difference(nets["bare"], nets[name]) for name in schedules)
    assert difference < 1e-5, difference
    for block in range(blocks):
        for name, schedule in schedules.items():
            runtime.wait()
            began, worked = time.perf_counter(), time.process_time()
            schedule(runtime, size, data, f"block {block}")
            runtime.wait()
            seconds[name].append((time.perf_counter() - began) / STEPS)
            work[name].append((time.process_time() - worked) / STEPS)
    parameters = [p.numel() for p in nets["bare"].parameters()]
    pairs = {name: [a / b for a, b in zip(seconds[name], seconds["bare"])] for name in schedules}
    return {
        "parameters": {"tensors": len(parameters), "numbers": sum(parameters)},
        "largest difference of weights after 20 steps": difference,
        "milliseconds a step": {name: round(1e3 * statistics.median(s), 2) for name, s in seconds.items()},
        "CPU milliseconds a step": {name: round(1e3 * min(s), 2) for name, s in work.items()},
        "ours over bare": round(statistics.median(pairs["ours"]), 3),
        "ours over bare, all blocks": [round(ratio, 3) for ratio in pairs["ours"]],
        "a call a parameter over bare": round(statistics.median(pairs["a call a parameter"]), 3),
    }


def ours(runtime: Runtime, size: dict[str, int], data: dict[str, Tensor], key: str) -> nn.Module:
    """`training.fit`."""
    net = Net(**size)
    batches = TensorBatches(data, batch_size=BATCH, runtime=runtime, stage=key, shuffle=False)
    settings = training.Fit(lr=1e-3)
    training.fit(
        lambda batch: F.cross_entropy(net(batch["x"]), batch["y"]),
        dict(net.named_parameters()),
        batches,
        settings,
        runtime=runtime,
        stage=key,
    )
    return net


def bare(runtime: Runtime, size: dict[str, int], data: dict[str, Tensor], key: str) -> nn.Module:
    """DistributedDataParallel, and nothing else."""
    net = Net(**size)
    parallel = DistributedDataParallel(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for x, y in _own(runtime, data):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(parallel(x), y).backward()
        optimizer.step()
    return net


def by_parameter(runtime: Runtime, size: dict[str, int], data: dict[str, Tensor], key: str) -> nn.Module:
    """One call a parameter, and the loss of all processes at every step."""
    net = Net(**size)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for x, y in _own(runtime, data):
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(x), y) / runtime.processes
        loss.backward()
        for parameter in net.parameters():
            distributed.all_reduce(parameter.grad)
        runtime.gather([loss.item()])
        optimizer.step()
    return net


def _own(runtime: Runtime, data: dict[str, Tensor]):
    """This process's part of every batch."""
    for x, y in zip(data["x"].split(BATCH), data["y"].split(BATCH)):
        yield x[runtime.rank :: runtime.processes], y[runtime.rank :: runtime.processes]


def _difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values())
    return max((a - b).abs().max().item() for a, b in pairs)


if __name__ == "__main__":
    main()
