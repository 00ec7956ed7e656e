"""The dynamic generating adapter: prompts for both modalities out of each sample and a learned codebook.

Knows tokens of frames and of spectrograms as they are before the first block. Does not know towers or tasks.
The middle prompts of PHP (Yin et al. 2025). Only what reaches the prompt is computed: the codebook's part of the
first layer once for all samples, and one token of the last layer.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        self, inputs: Sequence[Float[Tensor, "samples tokens dim"]], codebook: Float[Tensor, "codes dim"]
    ) -> tuple[Float[Tensor, "samples outputs"], ...]:
        """One result for each set of samples; the sets may differ in their numbers of tokens.

        All sets are one batch of rows; only attention takes them apart, so that nothing is padded.
        """
        counts = [len(tokens) for tokens in inputs]
        sets = [torch.cat([tokens, codebook.expand(len(tokens), -1, -1)], dim=1) for tokens in inputs]
        sizes = [one.shape[:2] for one in sets]
        rows = pack(sets)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            if index == 0:
                own = unpack(layer.project(pack(inputs)), [tokens.shape[:2] for tokens in inputs])
                shared = layer.project(codebook)
                projected = [torch.cat([one, shared.expand(len(one), -1, -1)], dim=1) for one in own]
            else:
                projected = unpack(layer.project(rows), sizes)
            if index == len(self.layers) - 1:  # no token but the first is read
                rows = torch.cat([tokens[:, 0] for tokens in unpack(rows, sizes)])
                rows = layer(rows, projected, kept=1)
            else:
                rows = layer(rows, projected)
        return self.out(rows).split(counts)


def pack(sets: Sequence[Float[Tensor, "samples tokens dim"]]) -> Float[Tensor, "rows dim"]:
    """The tokens of all samples of all sets, one under the other."""
    return torch.cat([one.flatten(0, 1) for one in sets])


def unpack(
    rows: Float[Tensor, "rows dim"], sizes: Sequence[tuple[int, int] | torch.Size]
) -> list[Float[Tensor, "samples tokens dim"]]:
    """The sets again, given the samples and tokens of each."""
    parts = rows.split([samples * tokens for samples, tokens in sizes])
    return [part.unflatten(0, tuple(size)) for part, size in zip(parts, sizes)]


class Layer(nn.Module):
    """Attention without bias in its projections, then an MLP of the same width; both after a layer norm."""

    def __init__(self, dim: int, *, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.join = nn.Linear(heads * head_dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def project(self, rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows qkv"]:
        """Queries, keys and values of the normalized tokens, side by side."""
        return self.qkv(self.norm_attention(rows))

    def forward(
        self,
        rows: Float[Tensor, "rows dim"],
        projected: Sequence[Float[Tensor, "samples tokens qkv"]],
        *,
        kept: int | None = None,
    ) -> Float[Tensor, "rows dim"]:
        """Rows of all sets after attention within each sample and the MLP; of a sample, the first `kept` tokens."""
        rows = rows + self.join(torch.cat([self._attended(one, kept) for one in projected]))
        return rows + self.mlp(self.norm_mlp(rows))

    def _attended(self, projected: Float[Tensor, "samples tokens qkv"], kept: int | None) -> Float[Tensor, "rows dim"]:
        query, key, value = (p.unflatten(2, (self.heads, -1)).transpose(1, 2) for p in projected.chunk(3, dim=2))
        attended = F.scaled_dot_product_attention(query[:, :, :kept], key, value)
        return attended.transpose(1, 2).flatten(2).flatten(0, 1)


def fold(patches: Float[Tensor, "segments patches width"], dim: int) -> Float[Tensor, "segments folded dim"]:
    """Patch embeddings as a few wide tokens: two 2x2 max-pools of the square map, then neighbors side by side."""
    side = round(patches.shape[1] ** 0.5)
    square = patches.transpose(1, 2).unflatten(2, (side, side))
    pooled = F.max_pool2d(square, 4).flatten(2).transpose(1, 2)
    return pooled.reshape(len(patches), -1, dim)
