"""A LLaVA as plain transformers and peft load it: weights, tokenizer, processor, and the lines that ask it.

Knows Hugging Face folders. Does not know tasks, nor how an update was learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, LlavaImageProcessor, LlavaProcessor

from perdure.families.instruction.adapters import Adapters
from perdure.families.instruction.settings import Tuning
from perdure.models.llava import Llava, assemble
from perdure.models.llava.conversation import IMAGE, SYSTEM

TEMPLATE = (
    "{{ '" + SYSTEM.replace("'", "\\'") + "' }}{% for message in messages %}"
    "{{ ' USER: ' if message['role'] == 'user' else ' ASSISTANT: ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '" + IMAGE + "\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '' if message['role'] == 'user' else eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
"""The conversation template of LLaVA-1.5 (Vicuna's) in Jinja."""


def export(llava: Llava, folder: Path, tuning: Tuning, *, update: Adapters | None = None) -> str:
    """Write the model as a folder; an `update` that is not merged yet is added to the weights, and also written as a
    PEFT folder ``adapter/``.

    Returns:
        The Python lines that load it and ask it a question.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with assemble.quiet():
        llava.model.save_pretrained(str(folder), state_dict=_weights(llava, update))
    _generation(llava, tuning).save_pretrained(str(folder))
    if update is not None:
        update.save(folder / "adapter")
    if not hasattr(llava.tokenizer, "save_pretrained"):
        return _loads(folder)
    return _asks(folder) if _save_processor(llava, folder) else _loads(folder)


def _weights(llava: Llava, update: Adapters | None) -> dict[str, Tensor]:
    """All weights under the names that they have without updates."""
    state = {name: tensor for name, tensor in llava.model.state_dict().items() if ".lora_" not in name}
    state |= update.added() if update is not None else {}
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items()}


def _generation(llava: Llava, tuning: Tuning) -> GenerationConfig:
    """Greedy answers, as the run was tested with."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=tuning.max_new_tokens,
        bos_token_id=llava.tokenizer.bos_token_id,
        eos_token_id=llava.tokenizer.eos_token_id,
        pad_token_id=llava.pad,
        suppress_tokens=llava.suppressed or None,
    )


def _save_processor(llava: Llava, folder: Path) -> bool:
    """Tokenizer and pixels as one processor; the tokenizer alone, and False, where it has no place for the image."""
    tokenizer, size = llava.tokenizer, llava.image_size
    look = LlavaImageProcessor(
        size={"height": size, "width": size},
        do_center_crop=False,
        do_pad=True,
        image_mean=list(llava.mean),
        image_std=list(llava.std),
    )
    look.save_pretrained(str(folder))  # preprocessor_config.json: what servers of such models look for
    if IMAGE not in tokenizer.get_vocab() and len(tokenizer) == llava.image_token:
        tokenizer.add_tokens([IMAGE], special_tokens=True)
    if tokenizer.get_vocab().get(IMAGE) != llava.image_token:
        tokenizer.save_pretrained(str(folder))
        return False
    processor = LlavaProcessor(
        look,
        tokenizer,
        patch_size=llava.model.config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the strategy takes off again
        chat_template=TEMPLATE if _adds_bos(tokenizer) else "{{ bos_token }}" + TEMPLATE,
    )
    processor.save_pretrained(str(folder))
    return True


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id in (None, tokenizer("a").input_ids[0])


def _loads(folder: Path) -> str:
    return (
        "from transformers import LlavaForConditionalGeneration\n"
        f'model = LlavaForConditionalGeneration.from_pretrained("{folder}")\n'
    )


def _asks(folder: Path) -> str:
    return (
        "from PIL import Image\nfrom transformers import pipeline\n"
        f'ask = pipeline("image-text-to-text", model="{folder}")\n'
        'parts = [{"type": "image", "image": Image.open("picture.jpg")}, {"type": "text", "text": "What is this?"}]\n'
        'print(ask(text=[{"role": "user", "content": parts}], return_full_text=False)[0]["generated_text"])\n'
    )
