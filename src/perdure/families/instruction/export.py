"""A multimodal language model as plain transformers and peft load it: weights, processor, and the lines that ask it.

Knows Hugging Face folders. Does not know tasks, nor how an update was learned.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import GenerationConfig

from perdure.families.instruction.adapters import Adapters
from perdure.families.instruction.settings import Tuning
from perdure.models.language_model import LanguageModel
from perdure.models.llava import assemble


def export(adapters: Adapters, folder: Path, tuning: Tuning, *, goes_on: bool = False) -> str:
    """Write the model as a folder, all updates added to its weights.

    Args:
        goes_on: the present update is not merged yet; it is also written as a PEFT folder ``adapter/``.

    Returns:
        The Python lines that load it and ask it a question.
    """
    llm = adapters.llm
    folder.mkdir(parents=True, exist_ok=True)
    with assemble.quiet():
        llm.save_weights(folder, _weights(adapters, add=goes_on or adapters.stacks))
    _generation(llm, tuning).save_pretrained(str(folder))
    if goes_on:
        adapters.save(folder / "adapter")
    return _asks(folder) if llm.save_processor(folder) else _loads(llm, folder)


def _weights(adapters: Adapters, *, add: bool) -> dict[str, Tensor]:
    """All weights under the names that they have without updates; `add`: with those that are not in them yet."""
    state = {name: tensor for name, tensor in adapters.llm.model.state_dict().items() if ".lora_" not in name}
    state |= adapters.added() if add else {}
    parts = tuple(f"{name}." for name in adapters.llm.projector_parts)
    state |= {name: t.to(adapters.llm.dtype) for name, t in state.items() if name.startswith(parts)}
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items()}


def _generation(llm: LanguageModel, tuning: Tuning) -> GenerationConfig:
    """Greedy answers, as the run was tested with."""
    ends = llm.ends
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=tuning.max_new_tokens,
        bos_token_id=llm.tokenizer.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends,
        pad_token_id=llm.pad,
        suppress_tokens=llm.suppressed or None,
    )


def _loads(llm: LanguageModel, folder: Path) -> str:
    kind = type(llm.model).__name__
    return f'from transformers import {kind}\nmodel = {kind}.from_pretrained("{folder}")\n'


def _asks(folder: Path) -> str:
    return (
        "from PIL import Image\nfrom transformers import pipeline\n"
        f'ask = pipeline("image-text-to-text", model="{folder}")\n'
        'parts = [{"type": "image", "image": Image.open("picture.jpg")}, {"type": "text", "text": "What is this?"}]\n'
        'print(ask(text=[{"role": "user", "content": parts}], return_full_text=False)[0]["generated_text"])\n'
    )
