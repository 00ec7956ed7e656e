"""Every method of the registry on tiny models of the real classes, with tiny streams of each kind that it answers.

``pytest.mark.parametrize("name", METHODS)`` is a test of every method; `ASKED` lists each with each of its kinds.
A registered method that is missing here fails ``tests/methods/test_every_method.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from perdure.settings import registry
from perdure.testing import tiny_stream
from perdure.types import Method, Stream
from tests import tiny_audio_visual, tiny_captioner, tiny_instruction, tiny_vit
from tests.methods import clip_methods

Streams = Mapping[str, Callable[[], Stream]]
MERGES = ("frozen_weights_stay_bitwise_unchanged",)
"""Updates are merged into weights that are frozen while they are trained; the projector is unfrozen to train alone."""


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """One method of the registry, ready for tests."""

    name: str
    roles: Mapping[str, Callable[[], Any]]
    """What makes the model of each role, optional ones too."""
    streams: Streams
    """Tiny streams by the kind that they ask; the first may ask more than one."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    allow: tuple[str, ...] = ()
    """What `check_method` is told to leave out."""
    given: tuple[str, ...] = ()
    """Optional roles that are always given."""

    def make(self, *, optional: bool = False, **settings: Any) -> Method:
        """A fresh method with fresh models; with those of its optional roles if asked to."""
        cls = registry.load("methods", self.name)
        if optional and "reward_confidences" in cls.Config.__dataclass_fields__:  # the paper gives tiny models none
            settings = {"reward_confidences": (3.0, 2.0, 1.0), **settings}
        told = registry.describe("methods", self.name)
        roles = [role for role in told.roles if self._gives(role, told, optional)]
        return cls(cls.Config(**{**self.settings, **settings}), **{role: self.roles[role]() for role in roles})

    def _gives(self, role: str, told: registry.Description, optional: bool) -> bool:
        """Whether the method gets a model in a role; of roles of which it takes one, those that are always given."""
        if role in told.one_role_of:
            return role in self.given
        return optional or role not in told.optional_roles

    def factory(self, **settings: Any) -> Callable[[], Method]:
        """As `check_method` takes it."""
        return partial(self.make, **settings)

    @property
    def stream(self) -> Stream:
        """The stream of `check_method`."""
        return next(iter(self.streams.values()))()


def plain_net() -> torch.nn.Module:
    """ResNet-18 with two stages of one and two blocks, eight channels wide.

    With fewer, oneDNN 3.12 corrupts memory on CPUs without AVX-512 (1x1, stride 2, channels last)."""
    from perdure.models import resnet18

    return resnet18.load(resnet18.Config(classes=6, width=8, stages=(1, 2), seed=0))


def gated_net() -> torch.nn.Module:
    from perdure.models import gated_resnet

    return gated_resnet.load(gated_resnet.Config(classes=6, width=8, hidden_ratio=2, seed=0))


def _rehearsal(name: str, **settings: Any) -> Tiny:
    net = gated_net if name in ("dynamos", "dynamos_sgd") else plain_net
    streams = {"classify": partial(tiny_stream, size=8)}
    return Tiny(name=name, roles={"net": net}, streams=streams, settings={"batch_size": 4, "lr": 0.01, **settings})


def _clip(name: str, **settings: Any) -> Tiny:
    roles = {"clip": clip_methods.fresh_clip}
    streams = {"classify": clip_methods.small_stream}
    return Tiny(name=name, roles=roles, streams=streams, settings=settings, given=("clip",))


def _vit(name: str, **settings: Any) -> Tiny:
    roles = {"vit": tiny_vit.fresh_vit}
    return Tiny(name=name, roles=roles, streams={"classify": clip_methods.small_stream}, settings=settings)


def _with_reward(reward: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    names = ("", 2, 3)
    return {f"policy{n}": clip_methods.fresh_clip for n in names} | {f"reward{n}": reward for n in names}


def _head(name: str, **settings: Any) -> Tiny:
    """A method that takes a CLIP or a ViT, on a ViT."""
    roles = {"vit": tiny_vit.fresh_vit}
    streams = {"classify": clip_methods.small_stream}
    return Tiny(name=name, roles=roles, streams=streams, settings=settings, given=("vit",))


def _test_time(name: str, **settings: Any) -> Tiny:
    roles = _with_reward(clip_methods.opposed_clip)
    streams = {"classify": partial(clip_methods.small_stream, train=1)}
    return Tiny(name=name, roles=roles, streams=streams, settings=settings)


def _on_features(name: str, **settings: Any) -> Tiny:
    roles = {"clip": clip_methods.opposed_clip, "reward": clip_methods.fresh_clip}
    return Tiny(
        name=name, roles=roles, streams={"classify": partial(clip_methods.small_stream, train=1)}, settings=settings
    )


def _on_batches(name: str, **settings: Any) -> Tiny:
    roles = {"clip": clip_methods.opposed_clip, "net": plain_net}
    streams = {"classify": partial(clip_methods.small_stream, train=2)}
    settings = {"batch_size": 2, "lr": 0.01, **settings}
    return Tiny(name=name, roles=roles, streams=streams, settings=settings, given=("clip",))


def _retrieval(name: str, **settings: Any) -> Tiny:
    roles = _with_reward(clip_methods.other_clip)
    return Tiny(name=name, roles=roles, streams={"retrieve": tiny_captioner.retrieval_stream}, settings=settings)


def _captions(name: str, **settings: Any) -> Tiny:
    roles = {
        **_with_reward(clip_methods.other_clip),
        "clip": clip_methods.fresh_clip,
        "captioner": tiny_captioner.captioner,
    }
    settings = {"most_words": 6, "beams": 2, "lr": 1e-2, **settings}
    return Tiny(name=name, roles=roles, streams={"caption": tiny_captioner.caption_stream}, settings=settings)


def _instruction(name: str, **settings: Any) -> Tiny:
    settings = settings or {"max_new_tokens": tiny_instruction.TUNING.max_new_tokens}
    allow = () if name == "zero_shot_llm" else MERGES
    roles = {"llm": tiny_instruction.tiny_llava, "clip": clip_methods.fresh_clip}
    streams = {"instruct": tiny_instruction.tiny_tasks}
    return Tiny(name=name, roles=roles, streams=streams, settings=settings, allow=allow)


def _audio_visual(name: str, **settings: Any) -> Tiny:
    kinds = registry.describe("methods", name).answers
    second = "answer" if "answer" in kinds else "parse-video"
    stream = partial(tiny_audio_visual.stream, train=2, test=2)
    streams = {"localize-events": partial(stream, "localize-events", second)}
    streams |= {kind: partial(stream, kind) for kind in kinds if kind not in streams}
    roles = {"clip": tiny_audio_visual.clip, "audio": tiny_audio_visual.clap}
    return Tiny(name=name, roles=roles, streams=streams, settings=settings)


_REPLAY = {"buffer_size": 8, "minibatch_size": 4}
_CLIP = {"template": clip_methods.TEMPLATE, "batch_size": 3, "lora_rank": 2}
_VIEWS = {"views": 6, "selection": 0.4}
_MAPPER = {"epochs": 1, "warmup": 1, "batch_size": 4}
_PROMPTS = {"epochs": 1, "batch_size": 3, "lr": 0.05}
_TOWERS = {"template": clip_methods.TEMPLATE, "epochs": 1, "batch_size": 3, "warmup_steps": 1, "lr": 1e-4}
_TUNING = {"tuning": tiny_instruction.TUNING}
_PARTS = {"epochs": 1, "mask_dim": 8, "mask_heads": 2}
_LATENTS = {"blocks": (0, 3), "latents": 2, "reduction": 4}

_ALL = (
    _rehearsal("sgd"),
    _rehearsal("joint_net"),
    _rehearsal("lwf_net"),
    _rehearsal("ewc_online"),
    _rehearsal("si"),
    _rehearsal("dynamos_sgd", warmup=1),
    _rehearsal("icarl", buffer_size=8),
    _rehearsal("agem", buffer_size=8),
    _rehearsal("agem_r", **_REPLAY),
    _rehearsal("gem", buffer_size=8),
    _rehearsal("er", **_REPLAY),
    _rehearsal("er_ace", **_REPLAY),
    _rehearsal("der", **_REPLAY),
    _rehearsal("derpp", **_REPLAY),
    _rehearsal("cls_er", **_REPLAY),
    _rehearsal("multi_scale", **_REPLAY),
    _rehearsal("dynamos", warmup=1, **_REPLAY),
    _clip("continual_clip", template=clip_methods.TEMPLATE),
    _clip("prototype", batch_size=3),
    _clip("finetune", **_CLIP),
    _clip("lwf", **_CLIP),
    _clip("joint", **_CLIP),
    _clip("rapf", template=clip_methods.TEMPLATE, epochs=2, batch_size=4, beta=0.2, threshold=0.9),
    _clip("mg_clip", epochs=1, visual_batch_size=4, **_CLIP),
    _clip("magmax", **_TOWERS),
    _clip("wise_ft", trains="both", **_TOWERS),
    _clip("rail", template=clip_methods.TEMPLATE, width=24, batch_size=3),
    _clip("bofa", templates=(clip_methods.TEMPLATE,), rank=3, epochs=2, rank_epochs=1, batch_size=3),
    _head("ranpac", projection_dim=24, batch_size=3),
    _vit("l2p", pool=4, top_k=2, length=2, batchwise=False, **_PROMPTS),
    _vit("l2p_prefix", pool=4, top_k=2, length=4, blocks=(0, 1), **_PROMPTS),
    _vit("dualprompt", pool=4, general_blocks=(0,), expert_blocks=(1, 2), expert_length=2, **_PROMPTS),
    _vit("dualprompt_coda", pool=4, general_blocks=(0,), expert_blocks=(1, 2), expert_length=4, **_PROMPTS),
    _vit("coda_prompt", components=2, length=4, blocks=(0, 2), orthogonal=0.1, **_PROMPTS),
    _test_time("zero_shot"),
    _test_time("tpt_prompt", context="a photo a", **_VIEWS),
    _test_time("tpt_encoder", steps=1, lr=1e-3, **_VIEWS),
    _test_time("kd", steps=1, lr=1e-3, loss="dkd", **_VIEWS),
    _test_time("rlcf_prompt", samples=2, steps=2, context="a photo a", **_VIEWS),
    _test_time("rlcf_encoder", samples=2, steps=2, lr=1e-3, **_VIEWS),
    _on_features("tda", views=6, selection=0.4),
    _on_features("zero", **_VIEWS),
    _on_features("adapt"),
    _on_features("dynaprompt", context="a photo a", prompts=2, views=4, selection=0.5),
    _on_batches("tent"),
    _on_batches("eata", e_margin=10.0, d_margin=2.0, fisher_size=3),
    _on_batches("sar", e_margin=10.0),
    _on_batches("cotta", augmentation_threshold=1.0, augmentations=1, restore_probability=0.1),
    _retrieval("rlcf_retrieval", samples=2, steps=2, lr=1e-2),
    _captions("clipcap", **_MAPPER),
    _captions("capdec", **_MAPPER),
    _captions("rlcf_caption", samples=3, steps=2),
    _instruction("zero_shot_llm"),
    _instruction("lora_sequential", **_TUNING),
    _instruction("lora_ewc", importance_examples=3, **_TUNING),
    _instruction("lora_lwf", **_TUNING),
    _instruction("lora_replay", per_task=2, **_TUNING),
    _instruction("moelora", experts=2, **_TUNING),
    _instruction("multitask", **_TUNING),
    _instruction("hide", **_TUNING),
    _instruction("lora_router", **_TUNING),
    _instruction("olora", norm_weight=0.01, **_TUNING),
    _instruction("sefe", fraction=0.1, **_TUNING),
    _audio_visual("zero_shot_av"),
    _audio_visual("av_finetune", **_LATENTS, **_PARTS),
    _audio_visual("av_joint", **_LATENTS, **_PARTS),
    _audio_visual("av_l2p", pool=4, top_k=2, length=2, **_PARTS),
    _audio_visual("av_dualprompt", expert_blocks=(2, 3), general_length=2, expert_length=2, **_PARTS),
    _audio_visual("av_coda_prompt", blocks=(0, 1), components=2, tasks=4, length=2, **_PARTS),
    _audio_visual("php", **tiny_audio_visual.SETTINGS),
)
_TUNED = {"batch_size": 3, "lora_rank": 2}
ON_A_VIT: dict[str, Tiny] = {
    "prototype": _head("prototype", batch_size=3),
    "finetune": _head("finetune", **_TUNED),
    "lwf": _head("lwf", **_TUNED),
    "joint": _head("joint", **_TUNED),
}
"""Methods that take a CLIP or a ViT, on a ViT; on a CLIP they are in `METHODS`."""
METHODS: dict[str, Tiny] = {tiny.name: tiny for tiny in _ALL}
ASKED: list[tuple[str, str]] = [(tiny.name, kind) for tiny in _ALL for kind in tiny.streams]
