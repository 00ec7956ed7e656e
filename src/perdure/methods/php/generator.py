"""The dynamic generating adapter: prompts for both modalities out of each sample and a learned codebook.

Knows tokens of frames and of spectrograms as they are before the first block. Does not know towers or tasks.
Section 2.7 of the specification. Only what reaches the prompt is computed: the codebook's part of the first layer
once for all samples, and one token of the last layer.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class MidPrompts(nn.Module):
    """One generator a middle layer, a codebook and a gate for all of them; visual and audio inputs share all.

    Args:
        layers: middle layers.
        dim: width of the tokens, the codebook and the prompts.
        length: prompt tokens for the keys, and as many for the values.
        codes: rows of the codebook.
        heads: attention heads; `head_dim`: width of each.
        depth: transformer layers of each generator.
    """

    def __init__(
        self,
        *,
        layers: int,
        dim: int,
        length: int = 16,
        codes: int = 256,
        heads: int = 12,
        head_dim: int,
        depth: int = 3,
    ) -> None:
        super().__init__()
        self.length = length
        self.codebook = nn.Parameter(torch.randn(codes, dim) * 0.02)
        self.generators = nn.ModuleList(
            Generator(dim=dim, outputs=2 * length * codes, heads=heads, head_dim=head_dim, depth=depth)
            for _ in range(layers)
        )
        self.key, self.query = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(
        self,
        visual: Float[Tensor, "frames tokens dim"],
        audio: Float[Tensor, "segments folded dim"],
        anchor: Float[Tensor, " dim"],
    ) -> tuple[Float[Tensor, "layers frames 2 length dim"], Float[Tensor, "layers segments 2 length dim"]]:
        """Prompts of the visual and the audio inputs.

        Args:
            visual: embedded frames, before the first layer norm.
            audio: patch embeddings, folded to the same width by `fold`.
            anchor: CLIP's class embedding without position: the gate's key.
        """
        made: tuple[list[Tensor], list[Tensor]] = ([], [])
        for generator in self.generators:
            states = generator([visual, audio], self.codebook)
            for prompts, state in zip(made, states):
                prompts.append(self._gated(state, anchor))
        seen, heard = (torch.stack(prompts) for prompts in made)
        return seen, heard

    def _gated(self, state: Float[Tensor, "samples outputs"], anchor: Tensor) -> Tensor:
        """Mixtures of the codebook's rows, each weighted by how well it goes with the anchor."""
        mixture = state.unflatten(1, (2 * self.length, len(self.codebook))).softmax(2)
        prompt = mixture @ self.codebook
        weight = torch.sigmoid(self.query(prompt) @ self.key(anchor) * prompt.shape[2] ** -0.5)
        return (prompt * weight[..., None]).unflatten(1, (2, self.length))


class Generator(nn.Module):
    """A pre-norm transformer over ``[tokens; codebook]`` whose first token becomes `outputs` numbers."""

    def __init__(self, *, dim: int, outputs: int, heads: int, head_dim: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, heads=heads, head_dim=head_dim) for _ in range(depth))
        self.out = nn.Linear(dim, outputs)

    def forward(
        self, inputs: list[Float[Tensor, "samples tokens dim"]], codebook: Float[Tensor, "codes dim"]
    ) -> list[Float[Tensor, "samples outputs"]]:
        """One result for each set of samples; the sets may differ in their numbers of tokens."""
        first = self.layers[0]
        assert isinstance(first, Layer)
        shared = first.project(codebook[None])
        return [self.out(self._first_token(tokens, codebook, shared)) for tokens in inputs]

    def _first_token(self, tokens: Tensor, codebook: Tensor, shared: Tensor) -> Float[Tensor, "samples dim"]:
        count = len(tokens)
        hidden = torch.cat([tokens, codebook.expand(count, -1, -1)], dim=1)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            last = index == len(self.layers) - 1
            if index == 0:
                projected = torch.cat([layer.project(tokens), shared.expand(count, -1, -1)], dim=1)
            else:
                projected = layer.project(hidden)
            hidden = layer(hidden[:, :1] if last else hidden, projected)
        return hidden[:, 0]


class Layer(nn.Module):
    """Attention without bias in its projections, then an MLP of the same width; both after a layer norm."""

    def __init__(self, dim: int, *, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.join = nn.Linear(heads * head_dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def project(self, hidden: Float[Tensor, "samples tokens dim"]) -> Float[Tensor, "samples tokens qkv"]:
        """Queries, keys and values of the normalized tokens, side by side."""
        return self.qkv(self.norm_attention(hidden))

    def forward(
        self, hidden: Float[Tensor, "samples kept dim"], projected: Float[Tensor, "samples tokens qkv"]
    ) -> Float[Tensor, "samples kept dim"]:
        """The first tokens, as many as `hidden` has, after attention to all tokens and the MLP."""
        query, key, value = (p.unflatten(2, (self.heads, -1)).transpose(1, 2) for p in projected.chunk(3, dim=2))
        attended = F.scaled_dot_product_attention(query[:, :, : hidden.shape[1]], key, value)
        hidden = hidden + self.join(attended.transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.norm_mlp(hidden))


def fold(patches: Float[Tensor, "segments patches width"], dim: int) -> Float[Tensor, "segments folded dim"]:
    """Patch embeddings as a few wide tokens: two 2x2 max-pools of the square map, then neighbors side by side."""
    side = round(patches.shape[1] ** 0.5)
    square = patches.transpose(1, 2).unflatten(2, (side, side))
    pooled = F.max_pool2d(square, 4).flatten(2).transpose(1, 2)
    return pooled.reshape(len(patches), -1, dim)
