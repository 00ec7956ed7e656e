"""The captioner of RLCF's golden vectors: a tiny OPT, two mappers, and words that are called w0, w1 ..."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from perdure.models.captioner import Captioner, Words
from perdure.models.captioner.mapper import make_mapper


class ToyWords:
    """``"w4 w5"`` <-> [4, 5]; ids 0 to 3 are special."""

    def encode(self, text: str) -> list[int]:
        return [int(word[1:]) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"w{i}" for i in ids if i > 3)


class ToyClipWords:
    """The same for CLIP, between a start and an end token, cut to the context."""

    def __init__(self, *, sot: int, eot: int, context_length: int) -> None:
        self.sot, self.eot, self.context_length = sot, eot, context_length

    def __call__(self, texts: Sequence[str], *, truncate: str = "no") -> Tensor:
        ids = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in enumerate(texts):
            tokens = [self.sot, *(int(word[1:]) for word in text.split()), self.eot]
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids


def part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Tensors of one model, by their own names."""
    return {n.removeprefix(f"{name}/"): t for n, t in state.items() if n.startswith(f"{name}/")}


def layers(state: dict[str, Tensor], before: str) -> int:
    """How many layers these tensors are of."""
    return len({n.removeprefix(before).split(".")[0] for n in state if n.startswith(before)})


def captioner(model: dict[str, Tensor], *, kind: str = "transformer", end: int = 3) -> Captioner:
    """The captioner of ``caption_model.npz``, in float64."""
    opt = part(model, "opt")
    words, width = opt["model.decoder.embed_tokens.weight"].shape
    inner = len(opt["model.decoder.layers.0.fc1.weight"])
    settings = {"vocab_size": words, "hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": inner}
    settings |= {"num_attention_heads": 4, "num_hidden_layers": layers(opt, "model.decoder.layers.")}
    # OPT's table of positions has two rows more than positions.
    settings["max_position_embeddings"] = len(opt["model.decoder.embed_positions.weight"]) - 2
    config = OPTConfig(**settings, pad_token_id=1, bos_token_id=2, eos_token_id=2, dropout=0.0)
    llm = OPTForCausalLM(config).double().eval()
    llm.load_state_dict({n: t.double() for n, t in opt.items()})
    state = part(model, "mapper" if kind == "transformer" else "mlp_mapper")
    mapper = make_mapper(
        kind,
        dim=model["prefix"].shape[1],
        width=width,
        prefix=int(model["prefix_length"]),
        clip_prefix=int(model["clip_length"]),
        layers=layers(part(model, "mapper"), "transformer.layers."),
        heads=8,
    ).double()
    mapper.load_state_dict({n: t.double() for n, t in state.items()})
    return Captioner(mapper, llm, Words(ToyWords(), start=2, end=end, pad=1), dim=model["prefix"].shape[1])
