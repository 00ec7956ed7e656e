"""PHP: prompts and adapters by depth for audio-visual tasks of different types, one after another.

Yin et al., Progressive Homeostatic and Plastic Prompt Tuning for Audio-Visual Multi-Task Incremental Learning,
ICCV 2025. CLIP and CLAP are frozen. In their first blocks, adapters between the two towers are shared by all tasks; in
the middle, a generator of each task makes prompts out of every sample; further up, each task has static prompts. The
task's name is known at test. No example of a past task is kept.

Needs: 24 GB GPU memory for ViT-B/32 with HTSAT and two videos a batch.

Knows which parts a task has, what is shared, and what is inserted where. The parts are in `generator` and
`perdure.families.audio_visual`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from perdure.checkpoint import stored_bytes
from perdure.errors import RecipeError
from perdure.families.audio_visual import front_ends, learning, settings
from perdure.families.audio_visual.adapter import DualGuidedAdapter
from perdure.families.audio_visual.front_ends import resolve
from perdure.families.audio_visual.inputs import Problem, problem_of
from perdure.families.audio_visual.parts import TaskParts
from perdure.families.audio_visual.pool import PromptPool, summarize
from perdure.families.audio_visual.readout import Readout
from perdure.families.audio_visual.system import Modes, System
from perdure.families.audio_visual.towers import CrossAdapters, Insertions
from perdure.methods.php.generator import MidPrompts, fold
from perdure.methods.php.inference import Choice, answer_each, choose, could_mean
from perdure.metrics import Inferred
from perdure.models.clap import Clap
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Predictions, Query, Task

Part = Literal["adapters", "clip_adapters", "contrast", "context", "mid", "deep"]


@dataclass(frozen=True, kw_only=True)
class Config(settings.Training):
    """Settings of PHP; the defaults are those of the published configuration, less its defects."""

    shallow: bool = True
    """Insert adapters between the towers in the `shallow_blocks`."""
    mid: bool = True
    """Generate prompts of each sample for the `mid_blocks`."""
    deep: bool = True
    """Insert static prompts in the `deep_blocks`."""
    shallow_blocks: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1)
    """Blocks with adapters, counted from 0."""
    mid_blocks: tuple[Annotated[int, Field(ge=0)], ...] = (3, 4)
    """Blocks with generated prompts."""
    deep_blocks: tuple[Annotated[int, Field(ge=0)], ...] = (5, 6, 7, 8, 9, 10, 11)
    """Blocks with static prompts of the visual tower."""
    shared: tuple[Part, ...] = ("adapters", "clip_adapters", "contrast")
    """Parts whose newest state answers old tasks; all others are kept for each task. Published: also `context`."""
    prompt_start: Literal["previous", "fresh"] = "previous"
    """A new task's prompts start from those of the task before, or are drawn anew."""
    latents: Annotated[int, Field(ge=1)] = 32
    """Learned tokens of an adapter that carry the other modality over."""
    adapter_reduction: Annotated[int, Field(ge=1)] = 8
    """Width of the visual tokens over that of an adapter's bottleneck."""
    audio_adapter_reduction: Annotated[int, Field(ge=1)] | None = None
    """The same for audio tokens; none: as `adapter_reduction`."""
    adapter_groups: Annotated[int, Field(ge=1)] = 2
    """Groups of an adapter's bottleneck."""
    adapter_batch_norm: bool = False
    """Batch norm in the adapters."""
    adapter_norm_before: bool = True
    """Layer norm before an adapter's bottleneck."""
    adapter_norm_after: bool = True
    """Layer norm at an adapter's end."""
    adapter_weights: tuple[float, float, float] = (0.2, 0.05, 0.01)
    """Weights of channel, spatial and temporal attention in an adapter (alpha, beta, gamma)."""
    audio_gate: bool = False
    """A gate that starts at 0 for audio adapters too."""
    shallow_audio_residual: bool = False
    """True: what audio adapters give stays in the audio stream, as the paper's text says; published code: False."""
    mid_length: Annotated[int, Field(ge=1)] = 16
    """Generated tokens for the keys of a block, and as many for the values."""
    codebook: Annotated[int, Field(ge=1)] = 256
    """Rows of the generator's codebook."""
    generator_heads: Annotated[int, Field(ge=1)] = 12
    """Attention heads of a generator."""
    generator_depth: Annotated[int, Field(ge=1)] = 3
    """Transformer layers of a generator."""
    deep_length: Annotated[int, Field(ge=1)] = 10
    """Static tokens for the keys of a block, and as many for the values."""
    pool: Annotated[int, Field(ge=1)] = 1
    """Static prompts to choose from. Published: 3, whose keys are never trained; those never chosen decay to 0."""
    top_k: Annotated[int, Field(ge=1)] = 1
    """Prompts chosen for a frame."""
    pool_query: Literal["mean", "max", "mean_max", "cls"] = "mean"
    """What of a frame's embedded tokens is compared with the keys."""
    pool_vote: Literal["frame", "video", "batch"] = "video"
    """Each frame chooses, or the majority of a video's frames. `batch` (published): of the whole batch."""
    key_pull: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the cosine between frames and the keys that they chose. Published: 0, keys stay as they are drawn.
    Where the task's name is not known at test, the task with the nearest key answers, which takes trained keys."""
    deep_layout: Literal["paired", "official"] = "paired"
    """`official` mixes keys and values up with the place in the batch, as the published code does."""
    context_tokens: Annotated[int, Field(ge=1)] = 4
    """Learned tokens in the class prompts."""
    class_position: Literal["end", "middle", "front"] = "end"
    """Where the class name stands among them."""
    audio_scale: Literal["raw", "exp"] = "raw"
    """Cosines of sound and text are multiplied by CLAP's scale as stored, a logarithm (`raw`, published), or by the
    scale itself (`exp`)."""
    loss_weights: tuple[float, float, float] = (5.0, 2.0, 1.5)
    """Of events, contrast from sound to image, contrast from image to sound."""
    adapter_ratio: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the adapted CLIP feature."""
    answer_heads: Annotated[int, Field(ge=1)] = 4
    """Attention heads of the head that answers questions."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """In the head that answers questions."""
    shuffle: bool = True
    """Videos in a new order each epoch."""
    official_modes: bool = False
    """All four below: the published code never leaves training mode."""
    official_audio_statistics: bool = False
    """Normalize mel bands by the batch, in training and at test."""
    official_head_modes: bool = False
    """Heads in training mode at test too."""
    official_augmentation: bool = False
    """SpecAugment and stochastic depth of the audio tower, in training and at test."""
    official_mixup: bool = False
    """Mix the spectrograms of segmentation tasks, in training and at test."""

    def faults(self):
        blocks = {"mid_blocks": self.mid_blocks, "deep_blocks": self.deep_blocks}
        for block in set(self.mid_blocks) & set(self.deep_blocks):
            yield "deep_blocks", f"block {block} is also one of {', '.join(b for b in blocks if b != 'deep_blocks')}"
        if self.top_k > self.pool:
            yield "top_k", f"chooses {self.top_k} of a pool of {self.pool}"
        if self.lr_min > self.lr:
            yield "lr_min", f"is above lr, {self.lr}"


class Php:
    """State: what is shared, and for each task its prompts, its context and its head."""

    Config = Config
    answers = frozenset({"localize-events", "parse-video", "segment", "answer", "classify"})
    new_labels_only = "each task has a head of its own"

    def __init__(self, config: Config, *, clip: Clip, audio: Clap) -> None:
        self.config, self.clip, self.audio = config, clip, audio
        self.system = System(
            clip=clip,
            clap=audio,
            readout=_readout(config),
            modes=_modes(config),
            pixel_statistics=config.pixel_statistics,
            cache_gigabytes=config.cache_gigabytes,
            cache_folder=config.cache_folder,
        )
        _check_blocks(config, len(audio.blocks))
        _check_sizes(config, clip.vision_config.hidden_size, audio.token_shapes)
        per_task = {"adapters", "clip_adapters", "contrast", "context", "mid", "deep", "head"} - set(config.shared)
        fresh = {"mid", "deep"} if config.prompt_start == "fresh" else set()
        self.tasks = TaskParts(self.make_parts, per_task=per_task, fresh=fresh)
        keyed = config.deep and "deep" not in config.shared
        self.needs_task_name = frozenset() if keyed else self.answers  # without keys of their own no task is inferred

    def preprocess(self, example: Example, training: bool) -> Batch:
        return front_ends.preprocess(self.system, example, training)

    def collate(self, items: list[Batch]) -> Batch:
        return front_ends.collate(items)

    # -- parts ------------------------------------------------------------------------------------------

    def make_parts(self, problem: Problem) -> nn.ModuleDict:
        """Fresh parts for a problem: those of the readout, and those that are switched on."""
        config, width = self.config, self.clip.vision_config.hidden_size
        parts = self.system.new_parts(problem)
        if config.shallow:
            parts["adapters"] = nn.ModuleDict({str(block): self._cross(block) for block in config.shallow_blocks})
        if config.mid:
            parts["mid"] = MidPrompts(
                layers=len(config.mid_blocks),
                dim=width,
                length=config.mid_length,
                codes=config.codebook,
                heads=config.generator_heads,
                head_dim=max(width // config.generator_heads, 1),
                depth=config.generator_depth,
            )
        if config.deep:
            parts["deep"] = PromptPool(
                layers=len(config.deep_blocks), pool=config.pool, length=config.deep_length, dim=width
            )
        return nn.ModuleDict(parts)

    def _cross(self, block: int) -> nn.ModuleDict:
        """Three adapters of a block; that of audio after the MLP would have no effect and is left out."""
        config, vision = self.config, self.clip.vision_config
        visual = ((vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size)
        audio = self.audio.token_shapes[block]

        def adapter(shape: tuple[int, int], other: tuple[int, int], reduction: int, gated: bool) -> DualGuidedAdapter:
            return DualGuidedAdapter(
                shape=shape,
                other=other,
                latents=config.latents,
                reduction=reduction,
                groups=config.adapter_groups,
                gated=gated,
                batch_norm=config.adapter_batch_norm,
                norm_before=config.adapter_norm_before,
                norm_after=config.adapter_norm_after,
                weights=config.adapter_weights,
            )

        reduction = config.adapter_reduction
        return nn.ModuleDict(
            {
                "audio": adapter(audio, visual, config.audio_adapter_reduction or reduction, config.audio_gate),
                "visual": adapter(visual, audio, reduction, True),
                "visual_second": adapter(visual, audio, reduction, True),
            }
        )

    def insert(self, parts: Mapping[str, Any], frames: Tensor, patches: Tensor, segments: int) -> Insertions:
        """Adapters, generated prompts and static prompts of the parts at hand."""
        config = self.config
        prefix, audio_prompt, penalty = {}, {}, None
        if "mid" in parts:
            anchor = self.clip.model.vision_model.embeddings.class_embedding
            seen, heard = parts["mid"](frames, fold(patches, frames.shape[2]), anchor)
            for block, visual, audio in zip(config.mid_blocks, seen, heard):
                prefix[block] = (visual[:, 0], visual[:, 1])
                audio_prompt[block] = audio.flatten(1, 2)
        if "deep" in parts:
            pool: PromptPool = parts["deep"]
            chosen, similarity = pool.choose(
                frames, top=config.top_k, vote=config.pool_vote, segments=segments, summary=config.pool_query
            )
            if config.key_pull:  # draws the chosen keys towards the frames that chose them
                penalty = -config.key_pull * similarity.gather(1, chosen).sum(1).mean()
            for block, prompt in zip(config.deep_blocks, pool.prefixes(chosen, layout=config.deep_layout)):
                prefix[block] = (prompt[:, 0], prompt[:, 1])
        adapters = parts["adapters"].items() if "adapters" in parts else ()
        cross = {int(block): CrossAdapters(**dict(trio.items())) for block, trio in adapters}
        return Insertions(
            prefix=prefix,
            audio_prompt=audio_prompt,
            adapters=cross,
            audio_residual=config.shallow_audio_residual,
            penalty=penalty,
        )

    # -- learning, predicting, state --------------------------------------------------------------------

    def learn(self, task: Task, runtime: Runtime) -> None:
        config, problem = self.config, problem_of(task)
        parts = self.tasks.begin(problem, runtime)
        learning.fit(
            self.system,
            problem,
            parts,
            self.insert,
            task.train,
            learning.adam(config),
            runtime=runtime,
            batch_size=config.batch_size,
            shuffle=config.shuffle,
        )
        self.tasks.finish(problem)

    def predictor(self, query: Query) -> Callable[[Batch], Predictions]:
        learned = list(self.tasks.problems.values())
        fitting = [place for place, problem in enumerate(learned) if could_mean(query, problem)]
        if query.task is None and fitting:
            return self._predictor_by_keys(query, learned, fitting)
        return learning.predictor(self.system, self.tasks, self.insert, query)

    def _predictor_by_keys(
        self, query: Query, learned: Sequence[Problem], fitting: Sequence[int]
    ) -> Callable[[Batch], Predictions]:
        """Each video with the prompts of the task whose keys are nearest; also returns the inferred task."""
        keys = [self.tasks.kept[problem.name]["deep"]["key"].to(self.clip.device) for problem in learned]

        @cache
        def predictor(choice: Choice) -> Callable[[Batch], Predictions]:
            head = learned[choice.head]
            parts = self.tasks.assemble(head, borrowed=("mid", "deep"), lender=learned[choice.prompts].name)
            return learning.predict_with(self.system, head, parts.eval(), self.insert)

        for place in fitting:
            predictor(Choice(place, place))

        def predict(batch: Batch) -> Predictions:
            batch = resolve(self.system, batch)
            frames, _, segments = front_ends.embed(self.system, learned[fitting[0]], batch)
            queries = summarize(frames, self.config.pool_query)
            choices = choose(queries, keys, segments=segments, fitting=fitting)
            answers = answer_each(batch, choices, predictor, learned, query)
            return Inferred(answers, [learned[choice.prompts].name for choice in choices])

        return predict

    def state_dict(self) -> dict[str, Any]:
        norm = self.audio.tower.batch_norm
        moved = self.system.modes.audio_statistics
        statistics = {"mean": norm.running_mean.clone(), "variance": norm.running_var.clone()} if moved else {}
        return {"tasks": self.tasks.state(), "mel_statistics": statistics}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tasks.load(state["tasks"])
        if state["mel_statistics"]:
            norm = self.audio.tower.batch_norm
            with torch.no_grad():
                norm.running_mean.copy_(state["mel_statistics"]["mean"])
                norm.running_var.copy_(state["mel_statistics"]["variance"])

    def facts(self) -> dict[str, Any]:
        """Parameters that are trained in a task, and what is stored for all tasks so far, for the result card."""
        parts = self.tasks.current or {}
        return {
            "extra_parameters": learning.count(parts),
            "parameters_by_part": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
            "stored_bytes": stored_bytes(self.tasks.state()),
        }


def _readout(config: Config) -> Readout:
    return Readout(
        context_tokens=config.context_tokens,
        class_position=config.class_position,
        audio_scale=config.audio_scale,
        weights=config.loss_weights,
        adapter_ratio=config.adapter_ratio,
        answer_heads=config.answer_heads,
        dropout=config.dropout,
        mask_dim=config.mask_dim,
        mask_heads=config.mask_heads,
    )


def _modes(config: Config) -> Modes:
    every = config.official_modes
    return Modes(
        audio_statistics=every or config.official_audio_statistics,
        head_modes=every or config.official_head_modes,
        augmentation=every or config.official_augmentation,
        mixup=every or config.official_mixup,
    )


def _check_blocks(config: Config, blocks: int) -> None:
    for name in ("shallow_blocks", "mid_blocks", "deep_blocks"):
        if wrong := [block for block in getattr(config, name) if block >= blocks]:
            raise RecipeError(f"block {wrong[0]}", where=f"method.{name}", expected=f"blocks 0 to {blocks - 1}")


def _check_sizes(config: Config, width: int, shapes: Sequence[tuple[int, int]]) -> None:
    """Raise a RecipeError where prompts or adapters do not fit the towers' widths."""
    tokens, channels = shapes[0]
    if config.mid and (tokens // 16 * channels) % width:
        raise RecipeError(
            f"{tokens} audio patches of width {channels} cannot be folded to tokens of width {width}",
            where="models",
            todo="Set method.mid=false, or take other models.",
        )
    for block in config.mid_blocks if config.mid else ():
        size, (tokens, channels) = 2 * config.mid_length * width, shapes[block]
        if size % tokens or size // tokens > channels:
            raise RecipeError(
                f"a generated prompt of {size} numbers does not fit {tokens} audio tokens of {channels} channels",
                where="method.mid_blocks",
                expected="a block, or a mid_length, where it does",
            )
    for block in config.shallow_blocks if config.shallow else ():
        audio = config.audio_adapter_reduction or config.adapter_reduction
        for dim, reduction in ((width, config.adapter_reduction), (shapes[block][1], audio)):
            if dim % config.adapter_groups or dim // reduction % config.adapter_groups or dim < reduction:
                raise RecipeError(
                    f"tokens of width {dim} reduced {reduction} times are not {config.adapter_groups} equal groups",
                    where="method.adapter_reduction",
                    todo="Choose a smaller reduction (audio tokens: audio_adapter_reduction).",
                )
