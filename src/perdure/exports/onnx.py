"""``onnx/`` of an export: a CLIP classifier with its rows as ONNX, checked against the weights that it was made of.

Knows the folder that CLIP methods export (`perdure.families.clip.export`). Needs the extra `onnx`.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from perdure.errors import DataError, MissingExtra
from perdure.families.clip import answer
from perdure.files.text_files import read_json

ANSWER = Path(answer.__file__).with_name("answer_onnx.py")
TOLERANCE = 1e-4
"""Largest difference of a probability that is taken for rounding."""


def require() -> None:
    """Raise MissingExtra unless what is needed is installed."""
    from importlib.util import find_spec

    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if lacking:
        raise MissingExtra(f"--onnx needs {', '.join(lacking)}", todo='Type: pip install "perdure[onnx]"')


def write(out: Path, *, method: str) -> str:
    """Write ``onnx/`` beside an export: ``model.onnx`` of ``pixel_values`` [images 3 size size] to ``logits`` and
    ``probabilities`` [images classes], and what an answer needs.

    Returns:
        The Python lines that answer with it.

    Raises:
        DataError: the export is of another kind; or onnxruntime's probabilities differ by more than `TOLERANCE`.
    """
    if not (out / "head.safetensors").is_file():
        what = f"ONNX is written of CLIP classifiers; {method} exports another model"
        raise DataError(what, where=str(out), todo="Leave --onnx out.")
    folder = out / "onnx"
    folder.mkdir(exist_ok=True)
    model = _Classifier(_clip(out), load_file(out / "head.safetensors"), read_json(out / "classes.json")).eval()
    size = read_json(out / "model" / "config.json")["vision_config"]["image_size"]
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    _convert(model, pixels[:2], folder / "model.onnx")
    _require_same(model, pixels, folder / "model.onnx")
    shutil.copyfile(out / "classes.json", folder / "classes.json")
    shutil.copyfile(out / "model" / "preprocessor_config.json", folder / "preprocessor_config.json")
    shutil.copyfile(ANSWER, folder / "answer_onnx.py")
    lines = "import sys", f'sys.path.insert(0, "{folder}")', "from answer_onnx import classify"
    return "\n".join([*lines, 'print(classify("picture.jpg"))', ""])


class _Classifier(nn.Module):
    """Pixels to logits and probabilities."""

    def __init__(self, clip: Any, head: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        super().__init__()
        self.clip, self.about, self.names = clip, dict(about), list(head)
        for name, tensor in head.items():
            self.register_buffer(f"head_{name}", tensor.float())

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        head = {name: getattr(self, f"head_{name}") for name in self.names}
        logits = answer.logits_of(self.clip, head, self.about, pixel_values)
        return logits, (logits / self.about.get("temperature", 1.0)).softmax(1)


def _clip(out: Path) -> Any:
    """The exported CLIP in float32, its adapter added to the weights."""
    from transformers import CLIPModel

    clip: Any = CLIPModel.from_pretrained(out / "model", dtype=torch.float32, attn_implementation="eager")
    if (out / "adapter").is_dir():
        from peft import PeftModel

        clip = PeftModel.from_pretrained(clip, out / "adapter").merge_and_unload()
    return clip.eval().requires_grad_(False)


def _convert(model: nn.Module, pixels: Tensor, file: Path) -> None:
    images = torch.export.Dim("images", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the converter, about its own future
        torch.onnx.export(
            model,
            (pixels,),
            str(file),
            input_names=["pixel_values"],
            output_names=["logits", "probabilities"],
            dynamic_shapes={"pixel_values": {0: images}},
            dynamo=True,
            external_data=sum(p.numel() for p in model.parameters()) * 4 > 1_800_000_000,  # protobuf ends at 2 GB
            verbose=False,
        )


def _require_same(model: nn.Module, pixels: Tensor, file: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for some in (pixels, pixels[:1]):
        with torch.no_grad():
            _, expected = model(some)
        (found,) = session.run(["probabilities"], {"pixel_values": some.numpy()})
        difference = (torch.from_numpy(found) - expected).abs().max().item()
        if not difference <= TOLERANCE:
            what = f"onnxruntime's probabilities differ by {difference:.1g}"
            raise DataError(what, where=str(file), expected=f"at most {TOLERANCE:g}")
