"""What CLIP methods write for others: the pretrained model as a folder of its own, and the classes beside it.

Knows the folders that plain transformers, peft and safetensors read. Does not know what a method adds to them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPModel

from perdure.families.clip import classifier
from perdure.files.written_whole import write_json
from perdure.layers import lora

if TYPE_CHECKING:
    from perdure.models.clip import Clip


ANSWER = Path(__file__).with_name("answer.py")
"""The file that answers in an export, without perdure; it is copied."""


def save(clip: Clip, folder: Path, classes: Sequence[str], head: Mapping[str, Tensor], **about: Any) -> str:
    """A folder that answers as the method does: the model, what its image features are compared with, the classes.

    ``model/`` holds the weights but the adapters, ``adapter/`` those as PEFT writes them, where there are any.

    Args:
        head: ``texts`` [classes dim] unit features, ``rows`` [classes dim] compared by cosine, ``adapter`` [dim dim] of
            the image features; see `answer`.
        about: settings that an answer needs.

    Returns:
        The Python lines that answer.
    """
    save_clip(clip, folder / "model")
    if lora.lora_state(clip.model):
        lora.save_adapter(clip.model, folder / "adapter", base=str(folder / "model"))
    save_tensors(folder, "head", head)
    write_json(folder / "classes.json", {"classes": list(classes), **about})
    shutil.copyfile(ANSWER, folder / "answer.py")
    return f'import sys\nsys.path.insert(0, "{folder}")\nfrom answer import classify\nprint(classify("picture.jpg"))\n'


def save_prompted(clip: Clip, folder: Path, classes: Sequence[str], *, template: str, clean: bool, **more: Any) -> str:
    """`save` of CLIP's own answer: images against one prompt a class. `more`: of the head, or about the answer."""
    texts = classifier.encode_prompts(clip, classifier.prompts(template, classes, clean=clean))
    head = {"texts": texts} | {name: value for name, value in more.items() if isinstance(value, Tensor)}
    about = {name: value for name, value in more.items() if not isinstance(value, Tensor)}
    about = {"template": template, "clean_names": clean} | about
    return save(clip, folder, classes, head, **about)


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
