"""The processor of a LLaVA-1.5, written as plain transformers read it: tokenizer, pixels and conversation template.

Knows Hugging Face's files. Does not know examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import LlavaImageProcessor, LlavaProcessor

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


def save(
    folder: Path,
    tokenizer: Any,
    *,
    image_token: int,
    size: int,
    patch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> bool:
    """Tokenizer and pixels as one processor; the tokenizer alone, and False, where it has no place for the image.

    Args:
        image_token: its id.
        size: of the square that images are resized to, in pixels; `patch_size` of the tower.
        mean, std: of pixels.
    """
    if not hasattr(tokenizer, "save_pretrained"):
        return False
    look = LlavaImageProcessor(
        size={"height": size, "width": size},
        do_center_crop=False,
        do_pad=True,
        image_mean=list(mean),
        image_std=list(std),
    )
    look.save_pretrained(str(folder))  # preprocessor_config.json: what servers of such models look for
    if IMAGE not in tokenizer.get_vocab() and len(tokenizer) == image_token:
        tokenizer.add_tokens([IMAGE], special_tokens=True)
    if tokenizer.get_vocab().get(IMAGE) != image_token:
        tokenizer.save_pretrained(str(folder))
        return False
    processor = LlavaProcessor(
        look,
        tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the strategy takes off again
        chat_template=TEMPLATE if _adds_bos(tokenizer) else "{{ bos_token }}" + TEMPLATE,
    )
    processor.save_pretrained(str(folder))
    return True


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id in (None, tokenizer("a").input_ids[0])
