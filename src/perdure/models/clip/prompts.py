"""Class prompts whose context is a learned vector sequence, shared by all classes: as in CoOp, CoCoOp and TPT.

Knows token ids, where the class name stands, and a CLIP's text tower. Does not know images, losses or episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.errors import RecipeError
from perdure.keys import key_seed

if TYPE_CHECKING:
    from perdure.models.clip import Clip

Position = Literal["end", "middle", "front"]


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The words that a context begins as, and where the class name stands among them."""

    words: str
    """Without the class name."""
    length: int
    """Context vectors."""
    position: Position = "end"
    split: int = 0
    """With position `middle`: context vectors before the class name."""
    learned_names: bool = False
    """One vector a class stands in place of its name, and is learned with the context."""


def wording(text: str, *, position: Position = "end") -> Wording:
    """From settings such as ``a photo of a`` or ``a photo [CLS] of a`` (underscores stand for spaces).

    Raises:
        RecipeError: no words, or the class name twice.
    """
    words = text.replace("_", " ").split()
    if words.count("[CLS]") > 1 or not [w for w in words if w != "[CLS]"]:
        raise RecipeError(f"the context is {text!r}", where="method.context", expected="words, and [CLS] at most once")
    if "[CLS]" in words:
        split = words.index("[CLS]")
        words.remove("[CLS]")
        return Wording(words=" ".join(words), length=len(words), position="middle", split=split)
    return Wording(words=" ".join(words), length=len(words), position=position, split=len(words) // 2)


def placeholder(length: int, *, position: Position = "end") -> Wording:
    """A context of vectors that no words stand for (random, or from a CoOp file)."""
    return Wording(words=" ".join(["X"] * length), length=length, position=position, split=length // 2)


NAME = "X"
"""The word whose place a learned class vector takes."""


class ContextPrompts:
    """Prompts ``[SOT] context name . [EOT]`` of a list of classes. The context is an argument of every method.

    With `learned_names` the vectors of the classes follow those of the context, so that both are tuned alike.

    Args:
        ids: token ids of "<words> <name>." with one token a context word.
        name_lengths: tokens of each class name; needed unless the name stands at the end.
        chunk: prompts encoded at a time.
    """

    def __init__(
        self,
        clip: Clip,
        ids: Int[Tensor, "classes tokens"],
        wording: Wording,
        *,
        name_lengths: Sequence[int] = (),
        chunk: int = 256,
    ) -> None:
        self.clip, self.length, self.chunk = clip, wording.length, chunk
        self.own = wording.learned_names
        device = clip.device
        self.ids = clip.cut(ids).to(device)
        self.ends = _ends(self.ids, clip.eot)
        self.order = _order(self.ids, wording, name_lengths).to(device)
        with torch.no_grad():
            self.fixed = clip.token_embeddings(self.ids)

    @classmethod
    def of(cls, clip: Clip, names: Sequence[str], wording: Wording, *, chunk: int = 256) -> ContextPrompts:
        """Prompts of class names; underscores in names become spaces.

        Raises:
            RecipeError: a word of the context is several tokens.
            DataError: a prompt is longer than the text tower's context.
        """
        cleaned = [NAME if wording.learned_names else name.replace("_", " ") for name in names]
        ids = clip.tokenize([f"{wording.words} {name}." for name in cleaned])
        lengths = [len(words) for words in clip.tokenizer.words(cleaned)] if clip.tokenizer and cleaned else []
        found = len(clip.tokenizer.words([wording.words])[0]) if clip.tokenizer else wording.length
        if found != wording.length:
            raise RecipeError(
                f"the context {wording.words!r} is {found} tokens in {wording.length} words",
                where="method.context",
                expected="words of one token each",
            )
        if wording.learned_names and set(lengths) - {1}:
            raise RecipeError(f"{NAME!r} is several tokens in this vocabulary", where="method.learned_names")
        return cls(clip, ids, wording, name_lengths=lengths, chunk=chunk)

    def __len__(self) -> int:
        return len(self.ids)

    def initial(self) -> Float[Tensor, "context width"]:
        """The embeddings of the words that stand for the context; without class vectors."""
        return self.fixed[0, 1 : 1 + self.length].clone()

    def features(self, contexts: Float[Tensor, "images context width"]) -> Float[Tensor, "images classes dim"]:
        """Unit text features of every class under every context, without gradients."""
        images, classes = len(contexts), len(self)
        # Short prompts together: a chunk is cut at its longest.
        rows = self.ends.argsort(stable=True).repeat_interleave(images)
        owner = torch.arange(images, device=rows.device).repeat(classes)
        with torch.no_grad():
            made = torch.cat(
                [self.encode(contexts, o, r) for o, r in zip(owner.split(self.chunk), rows.split(self.chunk))]
            )
        result = torch.empty_like(made)
        result[owner * classes + rows] = made
        return result.view(images, classes, -1)

    def backward(
        self, contexts: Float[Tensor, "images context width"], gradient: Float[Tensor, "images classes dim"]
    ) -> None:
        """Carry the gradient of a loss with respect to `features` on to ``contexts.grad``.

        Only prompts whose gradient is not zero are run again, a chunk at a time: memory does not grow with classes.
        """
        wanted = gradient.flatten(0, 1).ne(0).any(-1).nonzero().squeeze(-1)
        wanted = wanted[self.ends[wanted % len(self)].argsort(stable=True)]
        flat = gradient.flatten(0, 1)
        for part in wanted.split(self.chunk) if len(wanted) else ():
            features = self.encode(contexts, part // len(self), part % len(self))
            features.backward(flat[part])

    def encode(
        self,
        contexts: Float[Tensor, "images context width"],
        owner: Int[Tensor, " prompts"],
        rows: Int[Tensor, " prompts"],
    ) -> Float[Tensor, "prompts dim"]:
        """Unit features of prompts ``(context owner[i], class rows[i])``, with gradients."""
        kept = int(self.ends[rows].max()) + 1
        fixed, ids = self.fixed[rows], self.ids[rows]
        parts = [fixed[:, :1], contexts[owner, : self.length].to(fixed.dtype)]
        if self.own:
            parts.append(contexts[owner, self.length + rows, None].to(fixed.dtype))
        parts.append(fixed[:, 1 + self.length + self.own :])
        straight = torch.cat(parts, dim=1)
        order = self.order[rows][:, :kept, None].expand(-1, -1, straight.shape[-1])
        return F.normalize(self.clip.text_features(ids[:, :kept], embeddings=straight.gather(1, order)), dim=-1)


def name_vectors(names: Sequence[str], width: int, *, seed: int) -> Float[Tensor, "classes width"]:
    """Where learned class vectors begin: N(0, 0.02^2), drawn from (seed, the class's name)."""
    keys = [key_seed("class vector", seed, name) for name in names]
    return 0.02 * torch.stack([torch.randn(width, generator=torch.Generator().manual_seed(key)) for key in keys])


class MetaNet(nn.Module):
    """CoCoOp's network from an image feature to a shift of the context: Linear - ReLU - Linear."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, dim // 16)
        self.linear2 = nn.Linear(dim // 16, width)

    def forward(self, features: Float[Tensor, "images dim"]) -> Float[Tensor, "images width"]:
        return self.linear2(self.linear1(features).relu())


def shifted(
    context: Float[Tensor, "context width"], net: MetaNet, features: Float[Tensor, "images dim"]
) -> Float[Tensor, "images context width"]:
    """CoCoOp: the context plus what the net makes of each image, the same for all its vectors."""
    return context[None] + net(features)[:, None]


@dataclass(frozen=True, kw_only=True)
class Context:
    """How prompts begin."""

    wording: Wording
    vectors: Float[Tensor, "context width"] | None = None
    """None: the embeddings of the words."""
    net: MetaNet | None = None
    """CoCoOp's."""
    seed: int = 0
    """Of learned class vectors."""


def _ends(ids: Tensor, eot: int) -> Tensor:
    is_end = ids == eot
    return torch.where(is_end.any(1), is_end.int().argmax(1), ids.argmax(1))


def _order(ids: Tensor, wording: Wording, name_lengths: Sequence[int]) -> Tensor:
    """For each class, which place of ``[SOT] context name ...`` stands where; the end-of-text token does not move."""
    classes, tokens = ids.shape
    order = torch.arange(tokens).repeat(classes, 1)
    split = {"end": wording.length, "middle": wording.split, "front": 0}[wording.position]
    if split == wording.length:
        return order
    assert len(name_lengths) == classes, "the place of the name needs its length"
    m = wording.length
    for row, n in enumerate(name_lengths):
        context, name = list(range(1, 1 + m)), list(range(1 + m, 1 + m + n))
        order[row, 1 : 1 + m + n] = torch.tensor(context[:split] + name + context[split:])
    return order
