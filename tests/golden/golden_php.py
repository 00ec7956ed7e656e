"""The published names of PHP's parameters in perdure's terms, and the tiny system of the golden vectors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perdure.families.audio_visual.inputs import Problem
from perdure.methods.php import Config, Php
from perdure.models.clap import Clap, FrontEnd
from perdure.models.clap.convert import from_laion
from perdure.models.clip import Clip
from perdure.models.clip.convert import from_openai

ADAPTER = {
    "fc": "align_dim",
    "fc_affine_audio_1": "guide_channel",
    "fc_affine_video_1": "token_channel",
    "fc_affine_bottleneck": "squeeze",
    "fc_affine_v_c_att": "excite",
    "fc_affine_video_2": "token_spatial",
    "fc_affine_audio_2": "guide_spatial",
    "fc_affine_v_s_att": "spatial",
    "temporal_gated.0": "temporal",
    "conv_adapter": "align_tokens",
    "down_sampler": "down",
    "up_sampler": "up",
    "bn1": "norm_down",
    "bn2": "norm_up",
    "ln_before": "norm_before",
    "ln_post": "norm_after",
}
ADAPTER_TENSORS = {"my_tokens": "latents", "gate_av": "latent_gate", "gate": "gate"}
GENERATOR = (
    (r"^maben$", "codebook"),
    (r"^wgn_module\.(key|query)_w", r"\1"),
    (r"^pgn_module_1\.", "generators.1."),
    (r"^pgn_module\.", "generators.0."),
    (r"pre_out", "out"),
    (r"transformer\.layers\.(\d+)\.0\.norm", r"layers.\1.norm_attention"),
    (r"transformer\.layers\.(\d+)\.1\.norm", r"layers.\1.norm_mlp"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.to_qkv", r"layers.\1.qkv"),
    (r"transformer\.layers\.(\d+)\.0\.fn\.to_out\.0", r"layers.\1.join"),
    (r"transformer\.layers\.(\d+)\.1\.fn\.net\.0", r"layers.\1.mlp.0"),
    (r"transformer\.layers\.(\d+)\.1\.fn\.net\.3", r"layers.\1.mlp.2"),
)
HEADS = (
    ("question_encoder.word2vec", "question.words"),
    ("question_encoder.lstm", "question.lstm"),
    ("question_encoder.fc", "question.out"),
    ("fc_a1", "audio_in.0"),
    ("fc_a2", "audio_in.2"),
    ("fc_v1", "visual_in.0"),
    ("fc_v2", "visual_in.2"),
    ("fc_gl", "grounding"),
    ("attn_a", "attend_audio.attention"),
    ("attn_v", "attend_visual.attention"),
    ("linear11", "attend_visual.up"),
    ("linear12", "attend_visual.down"),
    ("norm1", "attend_visual.norm"),
    ("linear21", "attend_audio.up"),
    ("linear22", "attend_audio.down"),
    ("norm2", "attend_audio.norm"),
    ("fc_fusion", "fusion"),
    ("fc_ans", "answer"),
    ("visual_decoder.spatial_projection", "project"),
    ("visual_decoder.feat_adapter", "adapt"),
    ("audio_proj", "audio"),
    ("cross_attn.W_q", "query"),
    ("cross_attn.W_kv", "key_value"),
    ("cross_attn.proj", "join"),
    ("fusion_conv", "mask"),
)
DEAD = re.compile(
    r"gate_tk|prompt_key|meta_net|token_prefix|token_suffix|clap_text_encoder|audio_adapter_blocks_p2"
    r"|handler\.(fc[1-4]|norm3)\.|spatial_att|fc_caption|logit_scale"
)
"""Parameters of the published code that reach no output, or that are constants here."""


def adapter_name(official: str) -> str | None:
    """Of a shallow adapter; None where it has no effect."""
    if official in ADAPTER_TENSORS:
        return ADAPTER_TENSORS[official]
    stem, _, last = official.rpartition(".")
    return f"{ADAPTER[stem]}.{last}" if stem in ADAPTER else None


def generator_name(official: str) -> str:
    for pattern, new in GENERATOR:
        official = re.sub(pattern, new, official)
    return official


def head_name(official: str) -> str | None:
    """Of a head for answers or masks; None where it has no effect."""
    for old, new in HEADS:
        if official.startswith(old + "."):
            return official.replace(old, new, 1)
    match = re.match(r"visual_decoder\.up_blocks\.(\d+)\.conv\.(.*)", official)
    return f"up.{match[1]}.{match[2]}" if match else None


def part_name(official: str) -> str | None:
    """``<part>.<parameter>`` of any trained parameter; None where it has no effect."""
    if DEAD.search(official):
        return None
    block = re.match(r"(audio|vis)_adapter_blocks_p(\d)\.(\d+)\.(.*)", official)
    if block:
        kind = {"audio1": "audio", "vis1": "visual", "vis2": "visual_second"}[block[1] + block[2]]
        return f"adapters.{block[3]}.{kind}.{adapter_name(block[4])}"
    for old, new in (
        ("clip_adapter.fc.0", "clip_adapters.image.down"),
        ("clip_adapter.fc.2", "clip_adapters.image.up"),
        ("clip_adapter_text.fc.0", "clip_adapters.text.down"),
        ("clip_adapter_text.fc.2", "clip_adapters.text.up"),
        ("audio_visual_contrastive_learner.fc_a1", "contrast"),
        ("prompt_learner.ctx", "context.vectors"),
        ("deep_visual_e_prompt.prompt", "deep.prompt"),
    ):
        if official.startswith(old):
            return official.replace(old, new, 1)
    if official.startswith("mid_e_prompt."):
        return "mid." + generator_name(official.removeprefix("mid_e_prompt."))
    if official.startswith("handler.") and (name := head_name(official.removeprefix("handler."))):
        return f"head.{name}"
    return None


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> set[str]:
    """Copy tensors of perdure's names into a module; the names of the module that were not given."""
    target = module.state_dict()
    with torch.no_grad():
        for name, value in tensors.items():
            if name in target:
                target[name].copy_(value.reshape(target[name].shape))
    return set(target) - set(tensors)


class Words:
    """Stands for a tokenizer: the ids that the golden files hold, by text."""

    eot, sot = 59, 57

    def __init__(self) -> None:
        self.ids: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str], *, truncate: str = "no") -> Tensor:
        return torch.stack([self.ids[text] for text in texts])


class System:
    """The golden files' CLIP, CLAP and parameters by task."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        given = Path(__file__).parents[3] / "shared" / "golden" / "php"
        places = (folder, folder.parents[1] / "given" / folder.name, folder.parents[1] / folder.name / "given", given)
        frozen = next(place / "e2e_frozen.npz" for place in places if (place / "e2e_frozen.npz").exists())
        self.frozen = arrays(frozen)
        self.shared = arrays(folder / "e2e_shared.npz")
        self.words = Words()
        self.heard: dict[str, Tensor] = {}
        self.clip, self.clap = self._clip(), self._clap()

    def task(self, name: str) -> dict[str, Tensor]:
        return arrays(self.folder / f"e2e_{name}.npz")

    def names(self, task: str) -> tuple[str, ...]:
        """Class names of a task, whose tokens and CLAP features are put in place."""
        data = self.task(task)
        if "tokenized_prompts" not in data:
            return tuple(f"{task} {i}" for i in range(data["param/handler.fc_ans.bias"].shape[0]))
        names = tuple(f"{task} {i}" for i in range(len(data["tokenized_prompts"])))
        for i, name in enumerate(names):
            self.words.ids[f"X X X X {name}."] = data["tokenized_prompts"][i]
            self.heard[f"The sounds of {name}"] = data["param/clap_text_encoder.feat"][i].float()
        return names

    def method(self, **settings: Any) -> Php:
        """PHP in the sizes of the golden files, published behaviour."""
        config = {
            "deep_blocks": (5, 6, 7),
            "latents": 4,
            "audio_adapter_reduction": 4,
            "mid_length": 2,
            "generator_heads": 4,
            "deep_length": 3,
            "pool": 3,
            "pool_vote": "batch",
            "deep_layout": "official",
            "shared": ("adapters", "clip_adapters", "contrast", "context"),
            "mask_dim": 16,
            "mask_heads": 2,
            "dropout": 0.0,
            "official_head_modes": True,
            "shuffle": False,
        }
        return Php(Config(**(config | settings)), clip=self.clip, audio=self.clap)

    def problem(self, name: str) -> Problem:
        data = self.task(name)
        kinds = {"AVE": "localize-events", "LLP": "parse-video", "AVQA": "answer", "AVS": "segment"}
        return Problem(
            name=name,
            kind=kinds[name],  # type: ignore[arg-type]
            candidates=self.names(name),
            segments=data["image"].shape[1],
            words=len(data.get("param/handler.question_encoder.word2vec.weight", ())),
            mask_size=16 if name == "AVS" else 0,
        )

    def initial(self, method: Php, problem: Problem) -> nn.ModuleDict:
        """The parts of a task as the golden files have them, in single precision."""
        data = self.task(problem.name)
        tensors = dict(self.shared)
        tensors |= {n.removeprefix("param/"): v for n, v in data.items() if n.startswith("param/")}
        parts = Php.make_parts(method, problem)
        named = {new: v.float() for old, v in tensors.items() if (new := part_name(old))}
        missing = fill(parts, named)
        assert all(n == "deep.key" or "num_batches_tracked" in n for n in missing), missing
        if "deep" in parts:
            with torch.no_grad():
                parts["deep"].key.copy_(tensors["deep_visual_e_prompt.prompt_key"])  # type: ignore[union-attr]
        return parts

    def _clip(self) -> Clip:
        state = {}
        for name, value in self.frozen.items():
            for old, new in (("ViT.", "visual."), ("text_encoder.", ""), ("token_embedding", "token_embedding")):
                if name.startswith(old):
                    state[name.replace(old, new, 1)] = value.float()
        state["logit_scale"] = self.frozen["logit_scale"].float()
        return Clip(from_openai(state, heads=(4, 2)), tokenizer=self.words)  # type: ignore[arg-type]

    def _clap(self) -> Clap:
        audio = {n: v.float() for n, v in self.frozen.items() if n.startswith(("htsat.", "audio_projection."))}
        model = from_laion(audio, spec_size=64, audio_only=True)
        with torch.no_grad():
            model.logit_scale_a.fill_(3.0)
        clap = Clap(model, front=FrontEnd(mels=32))
        clap.encode_texts = lambda texts, **_: torch.stack([self.heard[text] for text in texts])  # type: ignore
        return clap


def arrays(path: Path) -> dict[str, Tensor]:
    """The numeric arrays of an ``.npz`` file as tensors, in their own types."""
    with np.load(path) as file:
        return {n: torch.from_numpy(file[n]) for n in file.files if file[n].dtype.kind in "biuf"}


def names_in(path: Path, key: str) -> list[str]:
    """An array of strings."""
    with np.load(path) as file:
        return [str(name) for name in file[key]]
