"""Memory of tuning a model of 7 B parameters by low-rank updates, by arithmetic on its shapes: nothing is measured.

    python -m benchmarks.llm_memory

A Llama of 7 B: 32 blocks of seven matrices, embeddings, head and a vision tower of 0.3 B. Without activations.
"""

from __future__ import annotations

from math import prod

BLOCK = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (4096, 4096)),
    **dict.fromkeys(("gate_proj", "up_proj"), (11008, 4096)),
    "down_proj": (4096, 11008),
}
BLOCKS, ASIDE = 32, 2 * 32000 * 4096 + 304_000_000
BYTES = {"bf16": 2.0, "int8": 1.01, "nf4": 0.52}
FRACTION, POSITION = 0.02, 3
"""Of RegLoRA's key elements, and the bytes of each (`Elements`)."""


def main() -> None:
    inside = BLOCKS * sum(prod(shape) for shape in BLOCK.values())
    print("| weights | rank | weights | update, gradient, Adam | a past task: factors | its key elements | at task 8 |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for kind, size in BYTES.items():
        for rank in (128, 32):
            weights = size * inside + 2 * ASIDE
            factors = BLOCKS * sum(rank * sum(shape) for shape in BLOCK.values())
            elements = POSITION * FRACTION * inside
            total = weights + 16 * factors + 7 * (4 * factors + elements)
            cells = [weights, 16 * factors, 4 * factors, elements, total]
            print(f"| {kind} | {rank} | {' | '.join(f'{cell / 1e9:.1f} GB' for cell in cells)} |")


if __name__ == "__main__":
    main()
