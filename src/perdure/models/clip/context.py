"""Where a prompt's context begins: as words, at random, or from a file of CoOp or CoCoOp (`.pth.tar`).

Knows the names in those files, which are read as tensors only. Does not know class names or episodes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import WeightsError
from perdure.keys import key_seed
from perdure.models.clip import Clip
from perdure.models.clip.archive import read_tensors
from perdure.models.clip.prompts import Context, MetaNet, Position, placeholder, wording


def make_context(
    clip: Clip,
    words: str,
    *,
    position: Position = "end",
    file: Path | None = None,
    random: int = 0,
    learned_names: bool = False,
    seed: int = 0,
) -> Context:
    """The context that settings describe: a file's, else `random` vectors of spread 0.02, else words.

    Args:
        learned_names: one vector a class in place of its name; they begin at random, too.

    Raises:
        WeightsError: the file is none of CoOp or CoCoOp for this CLIP.
        RecipeError: no words.
    """
    vectors, net = None, None
    if file is not None:
        vectors, net = read_context(file, clip)
    elif random:
        generator = torch.Generator().manual_seed(key_seed("context", seed))
        vectors = (0.02 * torch.randn(random, clip.text_config.hidden_size, generator=generator)).to(clip.dtype)
    how = wording(words, position=position) if vectors is None else placeholder(len(vectors), position=position)
    return Context(wording=replace(how, learned_names=learned_names), vectors=vectors, net=net, seed=seed)


def context_of(config: Any, clip: Clip) -> Context:
    """The context of a config's `context`, `position`, `context_file`, `random_context`, `learned_names`.

    What is random of it hangs on the seed that the method is made under (`run.seed_everything`)."""
    return make_context(
        clip,
        config.context,
        position=config.position,
        file=config.context_file,
        random=config.random_context,
        learned_names=config.learned_names,
        seed=torch.initial_seed(),
    )


def read_context(path: Path, clip: Clip) -> tuple[Float[Tensor, "context width"], MetaNet | None]:
    """The context of a CoOp file, and the meta-net of a CoCoOp file, for this CLIP.

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
        return vectors.to(clip.dtype), None
    net = MetaNet(dim, width)
    expected = {name: tensor.shape for name, tensor in net.state_dict().items()}
    if {name: tensor.shape for name, tensor in net_tensors.items()} != expected:
        raise WeightsError("the meta-net has other shapes", where=str(path), expected=f"that of a CLIP of {dim} dims")
    net.load_state_dict(net_tensors)
    return vectors.to(clip.dtype), net.to(clip.dtype).requires_grad_(False)
