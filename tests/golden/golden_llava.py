"""The recorded tiny LLaVA: its parts, and its two-task run replayed through the public method."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from recorded import load, prefixed
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from perdure.families.instruction.settings import Tuning
from perdure.families.instruction.tuning import fit_settings
from perdure.methods.sefe import Config, Sefe
from perdure.models.llava import Llava
from perdure.models.llava.assemble import PROJECTOR_NAMES, load_projector, put_together
from perdure.models.llava.tokenizer import load_tokenizer
from perdure.runtime import Runtime
from perdure.training import lr_factor
from perdure.types import Example, Examples, Task

PROJECTIONS = (
    *(f"self_attn.{p}_proj" for p in "qkvo"),
    *(f"mlp.{p}_proj" for p in ("gate", "up", "down")),
)
LR, PROJECTOR_LR = 2e-3, 1e-3


def llama(hidden: int, inner: int, layers: int, heads: int, words: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            vocab_size=words,
            rms_norm_eps=1e-5,
            max_position_embeddings=2048,
            attn_implementation="eager",
        )
    )


def tiny_llava(arrays: dict[str, np.ndarray], tokenizer) -> Llava:
    """The recorded start: CLIP, language model, first-stage projector."""
    hidden, inner, layers, heads, words, width, *_ = arrays["meta.H_I_L_heads_V_vh_r_steps_bs"].tolist()
    clip = {n.removeprefix("vision_model."): t for n, t in prefixed(arrays, "clip.").items()}
    depth = 1 + max(int(n.split(".")[2]) for n in clip if n.startswith("encoder.layers."))
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=len(clip["encoder.layers.0.mlp.fc1.bias"]),
            num_hidden_layers=depth,
            num_attention_heads=4,
            image_size=28,
            patch_size=14,
            hidden_act="quick_gelu",
        )
    )
    tower.load_state_dict(clip)
    decoder = llama(hidden, inner, layers, heads, words)
    decoder.load_state_dict(prefixed(arrays, "base."))
    model = put_together(decoder, tower)
    stage1 = {PROJECTOR_NAMES[n]: t for n, t in prefixed(arrays, "stage1.").items()}
    load_projector(model, stage1, where="stage1")
    model.set_attn_implementation("eager")
    return Llava(model, tokenizer)


def llama_with_updates(arrays: dict[str, np.ndarray]) -> tuple[LlamaForCausalLM, dict[str, tuple[Tensor, Tensor]]]:
    """The float64 Llama of reg_loss, its low-rank updates in the forward pass."""
    hidden, inner, layers, heads, _, words = arrays["meta.H_I_L_heads_r_V"].tolist()
    model = llama(hidden, inner, layers, heads, words).double()
    params = prefixed(arrays, "param.")
    plain = {n.replace(".base_layer", ""): t for n, t in params.items() if "lora_" not in n}
    model.load_state_dict(plain)
    factors = {}
    for name, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            a, b = (params[f"model.{name}.lora_{w}.weight"].clone().requires_grad_() for w in "AB")
            factors[name] = (a, b)
            module.register_forward_hook(lambda _, inputs, out, a=a, b=b: out + 2 * (inputs[0] @ a.T) @ b.T)
    return model, factors


class Replay(Runtime):
    """Serves the recorded starts of A, keeps the batches' order and what was logged."""

    def __init__(self, arrays: dict[str, np.ndarray], task: int) -> None:
        super().__init__(device="cpu", quiet=True)
        self.arrays, self.task = arrays, task - 1
        self.values: list[dict[str, float]] = []

    def normal(self, shape, *key, dtype=torch.float32) -> Tensor:
        """Noise from which `fresh_a` makes the recorded A."""
        a = torch.tensor(self.arrays[f"task{self.task + 1}.init.model.{key[1]}.lora_A.weight"]).double()
        assert tuple(a.shape) == tuple(shape)
        return math.sqrt(2) * torch.erfinv(a * math.sqrt(a.shape[1]))

    def permutation(self, n: int, *key) -> Tensor:
        return torch.arange(n)

    def log(self, event: str, **values) -> None:
        if event == "step":
            self.values.append({k: v.item() for k, v in values.items() if isinstance(v, Tensor)})


class ReplayedRun:
    """Both tasks, learned by `Sefe` from the recorded records in the recorded order."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.arrays = load(file)
        *_, self.rank, self.steps, self.batch = self.arrays["meta.H_I_L_heads_V_vh_r_steps_bs"].tolist()
        self.data = folder / "two_task_data"
        self.llava = tiny_llava(self.arrays, load_tokenizer(folder / "tokenizer"))
        self.tuning = Tuning(
            rank=self.rank,
            alpha=2 * self.rank,
            dropout=0,
            lr=LR,
            projector_lr=PROJECTOR_LR,
            batch_size=self.batch,
            group_by_length=False,
        )
        self.method = Sefe(Config(tuning=self.tuning, matrices=224), llm=self.llava)
        self.examples: list[Example] = []

    def check_batches(self, task: int) -> None:
        """Tokens, labels and pixels of every recorded row come out of one of the records."""
        records = json.loads((self.data / f"task{task}.json").read_text("utf-8"))
        examples = [self._example(record) for record in records]
        items = [self.llava.preprocess(example, True) for example in examples]
        self.examples = []
        for step in range(self.steps):
            rows = {k: torch.tensor(self.arrays[f"task{task}.step{step}.{k}"]) for k in self._parts}
            for ids, labels, mask, image in zip(*rows.values()):
                at = [i for i, item in enumerate(items) if self._same(item, ids[mask], labels[mask])]
                assert at, f"no record has the tokens of task {task}, step {step}"
                pixels = items[at[0]]["pixel_values"]
                torch.testing.assert_close(pixels, image, rtol=0, atol=1e-5)
                self.examples.append(examples[at[0]])

    def check_start(self, task: int) -> None:
        """Logits and gradients before any step, and gradients of the second step where they are recorded."""
        runtime = Replay(self.arrays, task)
        self.method.adapters.start(runtime)
        self.llava.projector.requires_grad_(True)
        for step in range(2):
            if step == 1:
                self._put(prefixed(self.arrays, f"task{task}.after_step0.model."))
            batch = self._batch(step)
            parameters = self._trained()
            for parameter in parameters.values():
                parameter.grad = None
            self.method.loss(batch)["loss"].backward()
            recorded = prefixed(self.arrays, f"task{task}.step{step}.grad.model.")
            assert set(recorded) == set(parameters)
            for name, expected in recorded.items():
                torch.testing.assert_close(parameters[name].grad, expected, rtol=1e-3, atol=1e-5, msg=name)
            norm = torch.stack([p.grad.norm() for p in parameters.values()]).norm().item()
            assert abs(norm - self.arrays[f"task{task}.grad_norm_before_clip"][step]) < 1e-3
            if step == 0:
                self._check_logits(task, batch)
        self._put(prefixed(self.arrays, f"task{task}.init.model."))
        for parameter in self._trained().values():
            parameter.grad = None

    def learn(self, task: int) -> None:
        self.runtime = Replay(self.arrays, task)
        examples = [Example(id=f"{i}", inputs=e.inputs, target=e.target) for i, e in enumerate(self.examples)]
        train = Examples.of(examples)
        self.final: dict[str, Tensor] = {}
        merge = self.method.adapters.merge

        def keep_and_merge(**settings) -> None:
            self.final = {n: p.detach().clone() for n, p in self._trained().items()}
            merge(**settings)

        self.method.adapters.merge = keep_and_merge
        self.method.learn(Task(index=task - 1, name=f"task{task}", kind="instruct", train=train), self.runtime)
        self.method.adapters.merge = merge

    def losses(self) -> list[float]:
        return [v["loss"] for v in self.runtime.values]

    def penalties(self) -> list[float]:
        return [v.get("penalty", 0.0) for v in self.runtime.values]

    def lr_after_each_step(self, task: int) -> list[float]:
        """Rates of the updates and of the projector for the step after each."""
        del task
        settings = fit_settings(self.tuning, steps=self.steps)
        factors = [lr_factor(settings, step + 1, self.steps) for step in range(self.steps)]
        return [rate * f for f in factors for rate in (LR, LR, PROJECTOR_LR, PROJECTOR_LR)]

    def recorded_lr(self, task: int) -> list[float]:
        arrays = [self.arrays[f"task{task}.step{s}.lr_groups_after"] for s in range(self.steps)]
        return [float(v) for array in arrays for v in array]

    def check_weights(self, task: int) -> None:
        recorded = prefixed(self.arrays, f"task{task}.after_step{self.steps - 1}.model.")
        assert set(recorded) == set(self.final)
        for name, expected in recorded.items():
            torch.testing.assert_close(self.final[name], expected, rtol=0, atol=2e-3)
        merged = prefixed(self.arrays, f"merged{task}_fp32.model.")
        weights = self.method.adapters.weights()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, merged[f"{name}.weight"], rtol=0, atol=5e-5)
        for theirs, ours in PROJECTOR_NAMES.items():
            expected = merged[theirs.removeprefix("model.")]
            torch.testing.assert_close(self.llava.projector.state_dict()[ours], expected, rtol=0, atol=5e-5)
        assert len(merged) == len(weights) + len(PROJECTOR_NAMES)

    def check_elements(self, task: int) -> None:
        """The multiset of positions after this task is the one recorded for the next."""
        recorded = prefixed(self.arrays, f"task{task + 1}.reg_indices.")
        assert {f"layers.{n}" for n in recorded} == set(self.method.elements)
        for name, pairs in recorded.items():
            ours = self.method.elements[f"layers.{name}"]
            theirs = (pairs[:, 0] * ours.shape[1] + pairs[:, 1]).sort().values
            assert torch.equal(ours.flat().repeat_interleave(ours.counts.long()).sort().values, theirs), name

    _parts = ("input_ids", "labels", "attention_mask", "images")

    def _check_logits(self, task: int, batch) -> None:
        key = f"task{task}.step0.logits_every7"
        if key not in self.arrays:
            return
        with torch.no_grad():
            logits = self.llava.model.lm_head(self.llava.hidden(batch))[:, ::7, : self.llava.vocabulary]
        expected = torch.tensor(self.arrays[key])
        real = batch["attention_mask"][:, ::7].bool()
        assert logits.shape == expected.shape
        torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-4)

    def _batch(self, step: int):
        chosen = self.examples[step * self.batch : (step + 1) * self.batch]
        return self.llava.collate([self.llava.preprocess(example, True) for example in chosen])

    def _trained(self) -> dict[str, Tensor]:
        """Trained parameters under their recorded names."""
        found: dict[str, Tensor] = {}
        for name, matrix in self.method.adapters.matrices.items():
            found |= {f"{name}.lora_A.weight": matrix.a, f"{name}.lora_B.weight": matrix.b}
        own = dict(self.llava.projector.named_parameters())
        return found | {n.removeprefix("model."): own[ours] for n, ours in PROJECTOR_NAMES.items()}

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        trained = self._trained()
        assert set(values) == set(trained)
        for name, value in values.items():
            trained[name].copy_(value)

    def _same(self, item, ids: Tensor, labels: Tensor) -> bool:
        """Whether an item's tokens are these, its run of patches being one mark in the record."""
        own = item["input_ids"]
        patch = own == self.llava.image_token
        kept = ~(patch & torch.cat([torch.zeros(1, dtype=torch.bool), patch[:-1]]))
        marked = torch.where(patch, -200, own)[kept]
        return torch.equal(marked, ids) and torch.equal(item["labels"][kept], labels)

    def _example(self, record) -> Example:
        inputs = {"conversations": record["conversations"]}
        if "image" in record:
            inputs["image"] = self.data / "images" / record["image"]
        return Example(id=record["id"], inputs=inputs)
