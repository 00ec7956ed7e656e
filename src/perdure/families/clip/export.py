"""What CLIP methods write for others: the pretrained model as a folder of its own, and the classes beside it.

Knows the folders that plain transformers, peft and safetensors read. Does not know what a method adds to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPModel

from perdure.checkpoint import write_json
from perdure.layers import lora

if TYPE_CHECKING:
    from perdure.models.clip import Clip


def save_trained(clip: Clip, folder: Path) -> str:
    """``model/`` with the weights but the adapters, ``adapter/`` with them as PEFT writes them, where there are any.

    Returns:
        The Python lines that load what was written.
    """
    save_clip(clip, folder / "model")
    if not lora.lora_state(clip.model):
        return f'from transformers import CLIPModel\nclip = CLIPModel.from_pretrained("{folder / "model"}")\n'
    lora.save_adapter(clip.model, folder / "adapter", base=str(folder / "model"))
    return (
        "from peft import PeftModel\nfrom transformers import CLIPModel\n"
        f'clip = PeftModel.from_pretrained(CLIPModel.from_pretrained("{folder / "model"}"), "{folder / "adapter"}")\n'
    )


def loads(folder: Path, name: str) -> str:
    """The Python lines that load what `save_tensors` wrote."""
    file = folder / f"{name}.safetensors"
    return f'from safetensors.torch import load_file\n{name} = load_file("{file}")["weight"]\n'


def save_clip(clip: Clip, folder: Path) -> None:
    """Model, tokenizer and preprocessing as ``from_pretrained`` reads them; adapters are left out."""
    model: Any = CLIPModel(clip.model.config)
    model.load_state_dict(base_state(clip.model))
    model.to(clip.dtype).save_pretrained(folder)
    if clip.tokenizer is not None:
        clip.tokenizer.save(folder)
    look = clip.transform
    square = {"height": look.size, "width": look.size}
    CLIPImageProcessor(
        size={"shortest_edge": look.shorter_side or look.size} if look.keep_aspect else square,
        do_center_crop=look.keep_aspect,
        crop_size=square,
        image_mean=list(look.mean),
        image_std=list(look.std),
        resample=look.resampling,
    ).save_pretrained(folder)


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model without its adapters, under the names that it had before they came."""
    return {
        name.replace(".base_layer", ""): tensor.detach().cpu()
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }


def save_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """``<name>.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: t.detach().cpu().contiguous() for key, t in tensors.items()}, folder / f"{name}.safetensors")


def save_classes(folder: Path, classes: Sequence[str], **about: Any) -> None:
    """``classes.json``: class names by label, and the settings that an answer needs."""
    write_json(folder / "classes.json", {"classes": list(classes), **about})
