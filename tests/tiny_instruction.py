"""A LLaVA of a few thousand random parameters with a byte tokenizer, and tiny instruction tasks."""

from __future__ import annotations

import numpy as np
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from perdure.families.instruction.settings import Tuning
from perdure.models.llava import Llava
from perdure.models.llava.assemble import put_together
from perdure.types import Example, Examples, Stream, Task

TUNING = Tuning(
    rank=2,
    alpha=4,
    dropout=0.1,
    lr=5e-3,
    projector_lr=1e-3,
    batch_size=3,
    max_length=512,
    gradient_checkpointing=False,
    max_new_tokens=4,
    generate_batch=2,
)


def byte_tokenizer() -> LlamaTokenizer:
    """Every byte is a token; BOS 1, EOS 2."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁"]
    return LlamaTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], legacy=True)


def tiny_parts(seed: int = 0, *, hidden: int = 16, layers: int = 2):
    """A Llama and a CLIP tower."""
    torch.manual_seed(seed)
    decoder = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=hidden,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=260,
            max_position_embeddings=1024,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
        )
    )
    return decoder, tower


def tiny_llava(seed: int = 0) -> Llava:
    torch.manual_seed(seed)
    return Llava(put_together(*tiny_parts(seed)), byte_tokenizer())


def tiny_tasks(*, tasks: int = 2, train: int = 5, test: int = 3) -> Stream:
    """Colors of squares, one answer in three without an image."""
    made = []
    for t in range(tasks):
        rows = []
        for i in range(train + test):
            image = None if i % 3 == 2 else np.full((6, 8, 3), 40 * i % 255, np.uint8)
            answer = ("red", "blue", "green")[(i + t) % 3]
            mark = "" if image is None else "<image>\n"
            said = [{"from": "human", "value": f"{mark}Color {i}?"}, {"from": "gpt", "value": answer}]
            shown = {} if image is None else {"image": image}
            if i < train:
                rows.append(Example(id=f"{t}/train/{i}", inputs={"conversations": said, **shown}, target=answer))
            else:
                target = {"answer": answer, "scorer": "exact", "form": "phrase", "official": False}
                rows.append(Example(id=f"{t}/test/{i}", inputs={"text": f"Color {i}?", **shown}, target=target))
        made.append(
            Task(
                index=t,
                name=f"task {t}",
                kind="instruct",
                train=Examples.of(rows[:train]),
                test=Examples.of(rows[train:]),
                metrics=("answer_accuracy", "format_compliance"),
            )
        )
    return Stream(name="tiny instruction", tasks=tuple(made), shared_candidates=False)
