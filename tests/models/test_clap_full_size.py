"""LAION's CLAP in full size (HTSAT-tiny, roberta-base) through the real loading path: loss and gradients of laion_clap.

The expected values come from laion_clap 1.1.7 with the weights of `weight`, in float32.
"""

import zlib

import pytest
import torch
from test_clap import laion_names
from torch import Tensor, nn
from transformers import ClapConfig, ClapModel

from perdure.models import clap

GRADIENTS = {
    "audio_model.audio_encoder.patch_embed.proj.weight": "audio_branch.patch_embed.proj.weight",
    "audio_model.audio_encoder.layers.3.blocks.1.output.dense.weight": "audio_branch.layers.3.blocks.1.mlp.fc2.weight",
    "text_model.embeddings.LayerNorm.weight": "text_branch.embeddings.LayerNorm.weight",
    "text_model.encoder.layer.11.output.dense.weight": "text_branch.encoder.layer.11.output.dense.weight",
}
"""Our names of some weights, and LAION's."""
LOSS = 0.733916
NORMS = [5.101635, 2.395807, 0.729877, 8.652244]


def weight(name: str, shape: torch.Size) -> Tensor:
    """A weight that hangs on its name: wide in matrices, near 1 or 0 elsewhere."""
    numbers = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return torch.empty(shape).uniform_(0.5, 2, generator=numbers)
    drawn = torch.empty(shape).normal_(generator=numbers)
    if len(shape) > 1:
        return drawn * 0.04
    return 1 + drawn * 0.1 if name.endswith("weight") else drawn * 0.1


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Log-mels of two clips, and the ids and mask of two texts."""
    mel = torch.randn(2, 1, 1001, 64, generator=torch.Generator().manual_seed(0)) * 10 - 30
    ids = torch.tensor([[0, 9064, 16, 10, 2335, 2, 1, 1], [0, 713, 16, 5, 2369, 9, 10, 2]])
    return mel, ids, (ids != 1).long()


def contrast(audio: Tensor, text: Tensor) -> Tensor:
    """Cross-entropy of the right text for each clip, at scale 100."""
    logits = 100 * nn.functional.normalize(audio, dim=-1) @ nn.functional.normalize(text, dim=-1).T
    return nn.functional.cross_entropy(logits, torch.arange(len(audio)))


@pytest.mark.slow
def test_loss_and_gradients_in_full_size_are_those_of_laion_clap(tmp_path):
    with torch.device("meta"):
        shapes = ClapModel(ClapConfig(audio_config={"enable_fusion": False})).state_dict()
    names = laion_names_of(shapes)
    state = {f"module.{name}": weight(name, shape) for name, shape in names.items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "630k-audioset-best.pt")
    del state
    ours = clap.load(clap.Config(weights=str(tmp_path / "630k-audioset-best.pt")))
    (tmp_path / "630k-audioset-best.pt").unlink()
    watched = dict(ours.model.named_parameters())
    for name in GRADIENTS:
        watched[name].requires_grad_()
    mel, ids, mask = inputs()
    audio = ours.encode_audio(mel)
    text = ours.model.text_projection(ours.model.text_model(ids, attention_mask=mask).pooler_output)
    loss = contrast(audio, text)
    loss.backward()
    assert loss.item() == pytest.approx(LOSS, rel=1e-4)
    assert [float(watched[name].grad.norm()) for name in GRADIENTS] == pytest.approx(NORMS, rel=1e-3)


def laion_names_of(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    class Model:
        def state_dict(self):
            return state

    named = laion_names(Model())  # type: ignore[arg-type]
    return {
        name: value.shape for name, value in named.items() if value.device.type == "meta" and value.is_floating_point()
    }
