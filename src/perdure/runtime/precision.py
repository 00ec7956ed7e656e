"""The precisions of a run: what the device must be able to do, and how float32 matrices are multiplied.

Knows torch's switches. Does not know methods, nor when autocast is entered.
"""

from __future__ import annotations

from typing import Literal

import torch

from perdure.errors import RecipeError

Precision = Literal["float32", "bf16", "fp16"]
Matmul = Literal["highest", "high"]


def require(precision: Precision, device: str) -> None:
    """RecipeError if the device (as a recipe names it) cannot run this precision."""
    if precision == "fp16" and (device == "cpu" or not torch.accelerator.is_available()):
        raise RecipeError(
            "run.precision is fp16 on a CPU",
            expected="bf16 or float32; fp16 needs a GPU",
            todo="Set run.precision=bf16.",
        )


def set_matmul(matmul: Matmul) -> None:
    """Products and convolutions of float32 numbers: `high` rounds their inputs to TF32 (10 bits) on GPUs that can.

    Without this call PyTorch multiplies in full and convolves in TF32.
    """
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = matmul == "high"
