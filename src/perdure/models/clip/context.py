"""Learned prompt contexts from the files of CoOp and CoCoOp (`.pth.tar`), read as tensors only.

Knows the names in those files. Does not know prompts or episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from perdure.errors import WeightsError
from perdure.models.clip import Clip
from perdure.models.clip.archive import read_tensors
from perdure.nn.test_time.prompts import MetaNet


@dataclass(frozen=True)
class Context:
    """What a file brings."""

    vectors: Float[Tensor, "context width"]
    net: MetaNet | None
    """CoCoOp's; None for CoOp."""


def read_context(path: Path, clip: Clip) -> Context:
    """The context of a CoOp file, or context and meta-net of a CoCoOp file, for this CLIP.

    Raises:
        WeightsError: no such file, not one of these, or made for another CLIP.
    """
    tensors, _ = read_tensors(path.expanduser())
    named = {name.removeprefix("prompt_learner."): tensor for name, tensor in tensors.items()}
    vectors = named.get("ctx")
    width, dim = clip.text_config.hidden_size, clip.dim
    if vectors is None or vectors.ndim != 2:
        found = ", ".join(list(named)[:4]) or "no tensors"
        shape = f"'ctx' has shape {list(vectors.shape)}" if vectors is not None else f"it holds {found}"
        raise WeightsError(
            f"{shape}, no context shared by all classes",
            where=str(path),
            expected="CoOp's or CoCoOp's file with 'ctx' [length, width]",
        )
    if vectors.shape[1] != width:
        raise WeightsError(f"the context is {vectors.shape[1]} wide", where=str(path), expected=f"{width}, as the CLIP")
    net_tensors = {n.removeprefix("meta_net."): t for n, t in named.items() if n.startswith("meta_net.")}
    if not net_tensors:
        return Context(vectors.float().to(clip.dtype), None)
    net = MetaNet(dim, width)
    expected = {name: tensor.shape for name, tensor in net.state_dict().items()}
    if {name: tensor.shape for name, tensor in net_tensors.items()} != expected:
        raise WeightsError("the meta-net has other shapes", where=str(path), expected=f"that of a CLIP of {dim} dims")
    net.load_state_dict(net_tensors)
    return Context(vectors.float().to(clip.dtype), net.to(clip.dtype).requires_grad_(False))
