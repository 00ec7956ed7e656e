"""Checkpoints of nine families of image-text-to-text models on disk: transformers' own classes, a few thousand random
weights, a byte tokenizer and the family's processor and template, all made here.

``folder(root, "qwen2_vl")`` writes one; ``tasks()`` are tiny conversations with one image, with two, and with none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from perdure.types import Example, Examples, Stream, Task
from tests import tiny_instruction

TUNING = replace(tiny_instruction.TUNING, batch_size=4, generate_batch=3)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
CHATML = (
    "{%% for m in messages %%}{{ '<|im_start|>' + m['role'] + '\n' }}{%% for c in m['content'] %%}"
    "{%% if c['type'] == 'image' %%}{{ '%s' }}{%% elif c['type'] == 'video' %%}{{ '%s' }}"
    "{%% else %%}{{ c['text'] }}{%% endif %%}{%% endfor %%}"
    "{{ '<|im_end|>\n' }}{%% endfor %%}{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\n' }}{%% endif %%}"
)
QWEN = CHATML % tuple(f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))
VICUNA = (
    "{% for m in messages %}{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{{ 'USER: ' if m['role'] == 'user' else ' ASSISTANT: ' }}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
    "{{ '' if m['role'] == 'user' else '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
IDEFICS = (
    "{{ '<|im_start|>' }}{% for m in messages %}{{ m['role'] | capitalize }}"
    "{{ ':' if m['content'][0]['type'] == 'image' else ': ' }}{% for c in m['content'] %}"
    "{% if c['type'] in ('image', 'video') %}{{ '<' + c['type'] + '>' }}{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def tokenizer(special: list[str], *, end: str, bos: str | None = None, **extra: str) -> Any:
    """Every byte is a token; `special` ones follow. `extra`: names under which processors look for some of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in ["<pad>", *special]])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, pad_token="<pad>", bos_token=bos, extra_special_tokens=extra
    )


def _ids(tokens: Any, *names: str) -> list[int]:
    return [tokens.convert_tokens_to_ids(name) for name in names]


def _save(model: Any, processor: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _qwen(kind: str, folder: Path) -> None:
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokens = tokenizer(special, end="<|im_end|>")
    start, end, image, video = _ids(tokens, *special[2:])
    prefix = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[kind]
    three = kind == "qwen3_vl"
    text = {**TEXT, "vocab_size": len(tokens) + 3, "bos_token_id": None, "eos_token_id": tokens.eos_token_id}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    text |= {"head_dim": 16} if three else {}
    merged = {"spatial_merge_size": 2, "temporal_patch_size": 2, "patch_size": 4, "depth": 2, "num_heads": 2}
    own: dict[str, dict[str, Any]] = {
        "qwen2_vl": {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        "qwen2_5_vl": {
            "hidden_size": 16,
            "out_hidden_size": 32,
            "intermediate_size": 24,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        "qwen3_vl": {
            "hidden_size": 16,
            "out_hidden_size": 32,
            "intermediate_size": 24,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    }
    config = getattr(hf, f"{prefix}Config")(
        text_config=text,
        vision_config={**merged, **own[kind]},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
    )
    size = {"shortest_edge": 64, "longest_edge": 1024}
    pixels = {"patch_size": 4, "size": size}
    looks = hf.Qwen2VLImageProcessor(**pixels)
    videos = (hf.Qwen3VLVideoProcessor if three else hf.Qwen2VLVideoProcessor)(**pixels)
    made = {"qwen2_vl": hf.Qwen2VLProcessor, "qwen2_5_vl": hf.Qwen2_5_VLProcessor, "qwen3_vl": hf.Qwen3VLProcessor}
    processor = made[kind](looks, tokens, videos, chat_template=QWEN)
    _save(getattr(hf, f"{prefix}ForConditionalGeneration")(config), processor, folder)


def _internvl(folder: Path) -> None:
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokens = tokenizer(["<|im_start|>", "<|im_end|>", *names.values()], end="<|im_end|>", **names)
    text = {**TEXT, "model_type": "qwen2", "vocab_size": len(tokens), "bos_token_id": None}
    vision = {**VISION, "image_size": [16, 16], "patch_size": [4, 4]}
    config = hf.InternVLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=_ids(tokens, "<IMG_CONTEXT>")[0],
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    square = {"height": 16, "width": 16}
    looks = hf.GotOcr2ImageProcessor(size=square, crop_to_patches=True, min_patches=1, max_patches=4)
    videos = hf.InternVLVideoProcessor(size=square)
    processor = hf.InternVLProcessor(
        looks, tokens, videos, image_seq_length=4, chat_template=CHATML % ("<IMG_CONTEXT>\n", "<video>\n")
    )
    _save(hf.InternVLForConditionalGeneration(config), processor, folder)


def _llava(kind: str, folder: Path) -> None:
    """LLaVA-1.5 (by its own processor), LLaVA-NeXT and LLaVA-OneVision."""
    vicuna = kind != "llava_onevision"
    special = ["<s>", "</s>", "<image>"] if vicuna else ["<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    tokens = tokenizer(special, end="</s>" if vicuna else "<|im_end|>", bos="<s>" if vicuna else None)
    text = {**TEXT, "model_type": "llama" if vicuna else "qwen2", "vocab_size": len(tokens) + 2}
    text |= {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id}
    clip = "clip_vision_model" if vicuna else "siglip_vision_model"
    vision = {**VISION, "model_type": clip, "image_size": 16, "patch_size": 4}
    grid = [[16, 32], [32, 16], [32, 32]]
    square = {"height": 16, "width": 16}
    image = {"image_token_index": _ids(tokens, "<image>")[0], "tie_word_embeddings": False}
    if kind == "llava_next":
        config = hf.LlavaNextConfig(
            text_config=text, vision_config=vision, image_grid_pinpoints=grid, image_seq_length=16, **image
        )
        looks = hf.LlavaNextImageProcessor(size={"shortest_edge": 16}, crop_size=square, image_grid_pinpoints=grid)
        processor = hf.LlavaNextProcessor(
            looks,
            tokens,
            patch_size=4,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=VICUNA,
        )
        model = hf.LlavaNextForConditionalGeneration(config)
    else:
        config = hf.LlavaOnevisionConfig(
            text_config=text,
            vision_config=vision,
            image_grid_pinpoints=grid,
            video_token_index=_ids(tokens, "<video>")[0],
            **image,
        )
        looks = hf.LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=grid)
        processor = hf.LlavaOnevisionProcessor(
            looks,
            tokens,
            hf.LlavaOnevisionVideoProcessor(size=square),
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            chat_template=CHATML % ("<image>\n", "<video>\n"),
        )
        model = hf.LlavaOnevisionForConditionalGeneration(config)
    _save(model, processor, folder)


def _idefics(kind: str, folder: Path) -> None:
    rows = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    names = ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>", "<video>"]
    tokens = tokenizer([*names, *rows], end="<end_of_utterance>")
    text = {**TEXT, "model_type": "llama", "vocab_size": len(tokens), "pad_token_id": tokens.pad_token_id}
    text |= {"bos_token_id": None, "eos_token_id": tokens.eos_token_id}
    vision = {**VISION, "image_size": 16, "patch_size": 4}
    image = {"image_token_id": _ids(tokens, "<image>")[0], "pad_token_id": tokens.pad_token_id}
    prefix = "SmolVLM" if kind == "smolvlm" else "Idefics3"
    config = getattr(hf, f"{prefix}Config")(
        text_config=text, vision_config=vision, scale_factor=2, tie_word_embeddings=False, **image
    )
    size = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
    looks = getattr(hf, f"{prefix}ImageProcessor")(**size)
    if kind == "smolvlm":
        videos = hf.SmolVLMVideoProcessor(**size)
        processor = hf.SmolVLMProcessor(looks, tokens, videos, image_seq_len=4, chat_template=IDEFICS)
    else:
        processor = hf.Idefics3Processor(looks, tokens, image_seq_len=4, chat_template=IDEFICS)
    _save(getattr(hf, f"{prefix}ForConditionalGeneration")(config), processor, folder)


def _gemma3(folder: Path) -> None:
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    special = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", *names.values()]
    tokens = tokenizer(special, end="<eos>", bos="<bos>", **names)
    text = {**TEXT, "vocab_size": len(tokens), "head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16}
    text["layer_types"] = ["sliding_attention", "full_attention"]
    ids = _ids(tokens, "<bos>", "<eos>", *names.values())
    config = hf.Gemma3Config(
        text_config=text,
        vision_config={**VISION, "image_size": 16, "patch_size": 4},
        mm_tokens_per_image=4,
        bos_token_id=ids[0],
        eos_token_id=ids[1],
        image_token_index=ids[2],
        boi_token_index=ids[3],
        eoi_token_index=ids[4],
        tie_word_embeddings=True,
    )
    looks = hf.Gemma3ImageProcessor(size={"height": 16, "width": 16})
    processor = hf.Gemma3Processor(looks, tokens, chat_template=GEMMA, image_seq_length=4)
    _save(hf.Gemma3ForConditionalGeneration(config), processor, folder)


FAMILIES: dict[str, Callable[[Path], None]] = {
    "qwen2_vl": lambda folder: _qwen("qwen2_vl", folder),
    "qwen2_5_vl": lambda folder: _qwen("qwen2_5_vl", folder),
    "qwen3_vl": lambda folder: _qwen("qwen3_vl", folder),
    "internvl": _internvl,
    "llava_next": lambda folder: _llava("llava_next", folder),
    "llava_onevision": lambda folder: _llava("llava_onevision", folder),
    "smolvlm": lambda folder: _idefics("smolvlm", folder),
    "idefics3": lambda folder: _idefics("idefics3", folder),
    "gemma3": _gemma3,
}
"""What writes a checkpoint of each family."""


def folder(root: Path, family: str) -> Path:
    """The family's checkpoint below `root`, made once."""
    made = root / family
    if not made.exists():
        torch.manual_seed(0)
        FAMILIES[family](made)
    return made


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Random pixels."""
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def conversation(name: str, *turns: tuple[str, str], images: tuple[Any, ...] = ()) -> Example:
    """A training example; ``<image>`` stands in the questions."""
    said = [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn)]
    return Example(
        id=name, inputs={"conversations": said, **({"image": list(images)} if images else {})}, target=turns[-1][1]
    )


def examples() -> list[Example]:
    """One image, two turns, two images of different sizes, text alone."""
    return [
        conversation("one", ("<image>\nColor?", "red"), images=(picture(0, 40, 70),)),
        conversation(
            "turns", ("<image>\nColor?", "blue"), ("And shape?", "a round ball"), images=(picture(1, 30, 90),)
        ),
        conversation("two", ("<image><image>\nSame?", "no"), images=(picture(2, 40, 70), picture(3, 33, 33))),
        conversation("text", ("What is two and two?", "four")),
    ]


def question(name: str, text: str, answer: str, *images: Any) -> Example:
    target = {"answer": answer, "scorer": "exact", "form": "phrase", "official": False}
    return Example(id=name, inputs={"text": text, **({"image": list(images)} if images else {})}, target=target)


def questions() -> list[Example]:
    return [
        question("one", "Color?", "red", picture(0, 40, 70)),
        question("other", "Which color has it?", "blue", picture(1, 30, 90)),
        question("two", "Same?", "no", picture(2, 40, 70), picture(3, 33, 33)),
        question("text", "What is two and two?", "four"),
        question("again", "Shape?", "round", picture(5, 33, 33)),
    ]


def tasks(count: int = 2) -> Stream:
    """The same conversations with other answers in each task."""
    made = []
    for t in range(count):
        rows = [
            Example(
                id=f"{t}/{e.id}",
                inputs={
                    **e.inputs,
                    "conversations": [
                        {**m, "value": m["value"].upper() if t % 2 and m["from"] == "gpt" else m["value"]}
                        for m in e.inputs["conversations"]
                    ],
                },
                target=e.target,
            )
            for e in examples()
        ]
        asked = [Example(id=f"{t}/{e.id}", inputs=e.inputs, target=e.target) for e in questions()]
        made.append(
            Task(
                index=t,
                name=f"task {t}",
                kind="instruct",
                train=Examples.of(rows),
                test=Examples.of(asked),
                metrics=("answer_accuracy", "format_compliance"),
            )
        )
    return Stream(name="tiny conversations", tasks=tuple(made), shared_candidates=False)
