"""What is left of eight tasks' updates when each is merged into weights of some type, or stacked beside them.

    python -m benchmarks.merged_updates [RUN]

First a matrix of 512 x 512 (sigma 0.02) with eight updates of rank 16. With RUN, the folder of a finished run of a
merging method (`method.tuning.past=merged`): its weights against the sum of the updates in ``adapters/``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file
from torch import Tensor, nn

from perdure.families.instruction import stacked
from perdure.layers.low_rank import merged

SIZE, RANK, TASKS = 512, 16, 8


def main() -> None:
    torch.set_num_threads(1)
    print("| way | large updates | small updates |\n|---|---:|---:|")
    rows: dict[str, list[str]] = {}
    for share in (0.227, 0.0227):
        for way, lost in losses(share).items():
            rows.setdefault(way, []).append(f"{100 * lost:.2g} %")
    for way, found in rows.items():
        print(f"| {way} | {' | '.join(found)} |")
    if len(sys.argv) > 1:
        print(f"\n{sys.argv[1]}: {100 * lost_in(Path(sys.argv[1])):.2g} % of the eight tasks' update is lost")


def losses(share: float) -> dict[str, float]:
    """Lost part of the total update by way, in the Frobenius norm. `share`: of the total update in the weight."""
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(SIZE, SIZE)
    pairs = [(torch.randn(RANK, SIZE), torch.randn(SIZE, RANK)) for _ in range(TASKS)]
    total = sum(b @ a for a, b in pairs)
    scale = share * weight.norm().item() / total.norm().item()
    total = scale * total
    found = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        first = now = weight.to(dtype)
        for a, b in pairs:
            now = merged(now, a, b, scale=scale)
        found[f"merged into {str(dtype).removeprefix('torch.')}"] = lost(now.float() - first.float(), total)
    layer = nn.Linear(SIZE, SIZE, bias=False)
    stacked.prepare(layer, inputs=SIZE, outputs=SIZE, device=torch.device("cpu"))
    for a, b in pairs:
        stacked.append(layer, a, scale * b)
    below, beside = stacked.factors(layer)
    found["stacked"] = lost(beside @ below, total)
    return found | quantized(weight, pairs, scale, total)


def quantized(weight: Tensor, pairs: list[tuple[Tensor, Tensor]], scale: float, total: Tensor) -> dict[str, float]:
    """The same in NF4, quantized anew after each task; empty without bitsandbytes."""
    try:
        import bitsandbytes as bnb
    except ImportError:
        return {}

    def packed(values: Tensor) -> Tensor:
        layer = bnb.nn.Linear4bit(SIZE, SIZE, bias=False, quant_type="nf4", compute_dtype=torch.float32)
        layer.weight = bnb.nn.Params4bit(values.clone(), requires_grad=False, quant_type="nf4")
        return dequantize_module_weight(layer.to("cpu")).float()

    first = now = packed(weight)
    for a, b in pairs:
        now = packed(now + scale * b @ a)
    return {"merged into NF4": lost(now - first, total)}


def lost(have: Tensor, total: Tensor) -> float:
    return ((have - total).norm() / total.norm()).item()


def lost_in(run: Path) -> float:
    """Of all matrices of a run together."""
    from perdure import api

    opened = api.reopen(run, device="cpu")
    adapters = opened.method.adapters
    fresh = opened.recipe.models["llm"].build()
    sums: dict[str, Tensor] = {}
    for folder in sorted((run / "adapters").iterdir()):
        factors = load_file(folder / "adapter_model.safetensors")
        for own, name in adapters.names.items():
            a, b = (factors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
            sums[own] = sums.get(own, 0) + adapters.scale * b.float() @ a.float()
    gaps, norms = 0.0, 0.0
    for own, name in adapters.names.items():
        have = adapters.matrices[own].weight.float() - fresh.model.get_submodule(name).weight.float()
        gaps += float((have - sums[own]).square().sum())
        norms += float(sums[own].square().sum())
    return (gaps / norms) ** 0.5


if __name__ == "__main__":
    main()
