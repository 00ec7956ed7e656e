"""DynaPrompt: a pool of prompts that goes on from image to image; each image tunes the prompts that suit it.

Xiao et al., DynaPrompt: Dynamic Test-Time Prompt Tuning, ICLR 2025. A prompt suits an image if its views agree under it
and the plain view stands out; where none does, the least recently used one begins to learn.

Needs: 12 GB GPU memory for ViT-B/16 and 1000 classes.

Knows the pool, its queue and the choice of prompts. Prompts' features are in `perdure.models.clip.prompts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from perdure.errors import RecipeError
from perdure.families.test_time import evidence, frozen, settings
from perdure.families.test_time.losses import average_entropy, entropy
from perdure.models.clip import Clip
from perdure.models.clip.context import make_context
from perdure.models.clip.prompts import ContextPrompts
from perdure.types import Query

Choice = Literal["published", "paper"]


@dataclass(frozen=True, kw_only=True)
class Config(settings.Continual, settings.FewViews):
    """Settings of DynaPrompt."""

    views: Annotated[int, Field(ge=2)] = 64
    """Views of an image, the plain one included."""
    prompts: Annotated[int, Field(ge=1)] = 12
    """Prompts of the pool."""
    context: str = "a photo of a"
    """Words that every prompt begins as."""
    lr: Annotated[float, Field(ge=0)] = 5e-3
    """Learning rate of the one step an image (AdamW, afresh for each)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled; it acts on all prompts at every image."""
    append: bool = True
    """Let the least recently used prompt begin anew once all are in use."""
    choice: Choice = "published"
    """Which prompts an image tunes: as the published code chooses, where numbers of prompts are taken as places in an
    order, or as the paper says."""
    decay_inactive: bool = True
    """Decay prompts that were not chosen, too, which asks for their features again; false is quicker and not equal."""
    chunk: Annotated[int, Field(ge=1)] = 256
    """Prompts encoded at a time. Moves no number."""

    def faults(self):
        yield from settings.views_faults(self)


class Dynaprompt(frozen.OnFeatures):
    """The pool changes over a test set and begins anew with the next."""

    Config = Config
    answers = frozenset({"classify"})
    not_updatable = "it learns nothing from training data"
    adapts = True

    def __init__(self, config: Config, *, clip: Clip) -> None:
        super().__init__(config, clip)
        self.kept = evidence.kept_of(config.views, config.selection)
        self.wording = make_context(clip, config.context).wording

    def texts(self, candidates: tuple[str, ...]) -> Tensor:
        """Class features under the prompt that all begin as."""
        self.encoded = ContextPrompts.of(self.clip, candidates, self.wording, chunk=self.config.chunk)
        return self.encoded.features(self.encoded.initial()[None])[0]

    def begin(self, query: Query, texts: Tensor) -> Pool:
        config, start = self.config, self.encoded.initial()
        return Pool(
            self.encoded,
            start,
            torch.zeros(config.prompts, *start.shape).to(start),
            scale=float(self.clip.scale),
            kept=self.kept,
            lr=config.lr,
            weight_decay=config.weight_decay,
            append=config.append,
            choice=config.choice,
            decay_inactive=config.decay_inactive,
        )

    def answer(self, state: Pool, rows: Mapping[str, Tensor], texts: Tensor) -> Tensor:
        return torch.stack([state.answer(views).logits for views in rows["feature"]])


class Prompts(Protocol):
    """Class features under contexts, and their gradient: see `ContextPrompts`."""

    def features(self, contexts: Tensor) -> Tensor: ...
    def backward(self, contexts: Tensor, gradient: Tensor) -> None: ...


@dataclass(frozen=True)
class Seen:
    """What one image did."""

    logits: Float[Tensor, " classes"]
    entropy: Float[Tensor, " prompts"]
    """Mean entropy of all views under each prompt, before the step."""
    gap: Float[Tensor, " prompts"]
    """How much surer the plain view's highest logit is than the mean of the others'."""
    chosen: list[int]


class Pool:
    """Residuals of prompts, how recently and how often each was chosen.

    Args:
        prompts: features of contexts.
        start: the context that a residual is added to.
        residuals: [prompts context width]; changed in place.
        kept: views that the loss looks at.
    """

    def __init__(
        self,
        prompts: Prompts,
        start: Float[Tensor, "context width"],
        residuals: Float[Tensor, "prompts context width"],
        *,
        scale: float,
        kept: int,
        lr: float,
        weight_decay: float,
        append: bool = True,
        choice: Choice = "published",
        decay_inactive: bool = True,
    ) -> None:
        if kept < 1:
            raise RecipeError("the share of views that is kept holds none", where="method.selection")
        self.prompts, self.start, self.residuals = prompts, start, residuals.detach().clone()
        self.scale, self.kept, self.lr, self.decay = scale, kept, lr, weight_decay
        self.append, self.choice, self.decay_inactive = append, choice, decay_inactive
        self.order = list(range(len(residuals)))
        """The least recently chosen first."""
        self.use = [0] * len(residuals)
        self.texts: Tensor | None = None
        """Class features [prompts classes dim]; those of `stale` prompts are of another context."""
        self.stale = set(self.order)

    @torch.no_grad()
    def answer(self, views: Float[Tensor, "views dim"]) -> Seen:
        """The plain view's logits after one step of the prompts that suit the image."""
        if self.append and all(self.use):
            self._renew(self.order[0])
        logits = self.scale * torch.einsum("vd,pcd->vpc", views, self._features())
        h = entropy(logits)
        best = logits.amax(-1)
        agree, gap = h.mean(0), best[0] - best[1:].mean(0)
        chosen = self._choose(agree.tolist(), gap.tolist())
        for i in chosen:
            self.order.remove(i)
            self.order.append(i)
            self.use[i] += 1
        index = h[:, chosen].mean(1).argsort(stable=True)[: self.kept]
        self._step(views[index], chosen)
        after = self.scale * views[0] @ self._features(sorted(set(chosen))).transpose(-1, -2)
        rows = dict(zip(sorted(set(chosen)), after))
        return Seen(torch.stack([rows[i] for i in chosen]).mean(0), agree, gap, chosen)

    def _renew(self, i: int) -> None:
        self.use[i] = 0
        self.residuals[i] = 0
        self.stale.add(i)

    def _choose(self, agree: Sequence[float], gap: Sequence[float]) -> list[int]:
        """Prompts that this image tunes, with repetitions as published."""
        first = self.order[0]
        if self.choice == "paper":
            suits = {p for p in self.order if agree[p] <= agree[first] and gap[p] >= gap[first]}
            return sorted(suits | {first})
        ids = range(len(agree))
        by_entropy = sorted(ids, key=lambda p: -agree[p])
        by_gap = sorted(ids, key=lambda p: -gap[p])
        place = by_entropy.index(first)
        found = set(by_entropy[min(place + 1, len(by_entropy) - 1) :]) & set(by_gap[:place])
        return [by_entropy[a] for a in sorted(found)] + [by_entropy[place]]

    def _step(self, views: Float[Tensor, "kept dim"], chosen: Sequence[int]) -> None:
        """AdamW, afresh, on all prompts: those chosen have a gradient, all decay."""
        distinct = sorted(set(chosen))
        texts = self._features(distinct)
        times = torch.tensor([chosen.count(i) for i in distinct], dtype=texts.dtype, device=texts.device)
        with torch.enable_grad():
            leaf = texts.detach().requires_grad_()
            logits = self.scale * views @ leaf.transpose(-1, -2)
            loss = (average_entropy(logits) * times).sum() / len(chosen)
            (gradient,) = torch.autograd.grad(loss, leaf)
            contexts = (self.start + self.residuals[distinct]).requires_grad_()
            contexts.grad = torch.zeros_like(contexts)
            self.prompts.backward(contexts, gradient)
        moving = self.residuals if self.decay_inactive else self.residuals[distinct]
        moving = torch.nn.Parameter(moving.clone())
        moving.grad = torch.zeros_like(moving)
        moving.grad[distinct if self.decay_inactive else slice(None)] = contexts.grad
        torch.optim.AdamW([moving], lr=self.lr, weight_decay=self.decay).step()
        changed = range(len(self.residuals)) if self.decay_inactive else distinct
        self.stale |= {i for i, row in zip(changed, moving) if bool(row.any())}
        self.residuals[list(changed)] = moving.detach()

    def _features(self, wanted: Sequence[int] | None = None) -> Float[Tensor, "prompts classes dim"]:
        """Class features under prompts (all of them). What has not moved is not made again, and prompts that have not
        learned yet share theirs, so that they tie exactly."""
        ids = list(range(len(self.residuals)) if wanted is None else wanted)
        again = [i for i in ids if i in self.stale]
        new = [i for i in again if not bool(self.residuals[i].any())]
        made = {i: new[0] if i in new else i for i in again}
        distinct = sorted(set(made.values()))
        if distinct:
            found = dict(zip(distinct, self.prompts.features(self.start + self.residuals[distinct])))
            if self.texts is None:
                self.texts = torch.zeros(len(self.residuals), *found[distinct[0]].shape).to(self.start)
            for i, source in made.items():
                self.texts[i] = found[source]
            self.stale -= set(again)
        assert self.texts is not None
        return self.texts[ids]

    def state_dict(self) -> dict[str, Any]:
        """With the features as they were made, so that a test that goes on has the same to the bit."""
        state = {"residuals": self.residuals.cpu(), "order": list(self.order), "use": list(self.use)}
        return state | {"texts": None if self.texts is None else self.texts.cpu(), "stale": sorted(self.stale)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.residuals = state["residuals"].clone().to(self.start)
        self.order, self.use = list(state["order"]), list(state["use"])
        self.texts = None if state["texts"] is None else state["texts"].clone().to(self.start)
        self.stale = set(state["stale"])
