"""Key elements of low-rank updates, and the penalty on moving them again (SEFE, arXiv 2505.02486, RegLoRA).

Knows one adapted matrix at a time: ``D = B A`` without the scale alpha / r. Does not know models or tasks.

The penalty needs few of D's entries, so D is never made: entries are sampled products of B's rows and A's
columns, their gradients weighted sums of those. Only where most entries are wanted, D is made in tiles.

By hand, with B = (1, 2)^T and A = (3, -1): D = ((3, -1), (6, -2)). The half of D's entries that is largest is 6 and 3,
at (1, 0) and (0, 0), and their mean magnitude is 4.5. dR/dD is 1/2 at both positions and 0 elsewhere, so that
dR/dB = dR/dD A^T = (3/2, 3/2)^T and dR/dA = B^T dR/dD = (3/2, 0).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Multiplicity = Literal["count", "union"]
DENSE = 0.3
"""Share of positions from which whole tiles of the product are made (measured on a CPU with rank 128)."""
TILE = 1024
"""Rows and columns of a tile on a CPU: its rows of B and columns of A, at rank 128, stay in a core's cache."""
DENSE_ROWS = 256


def key_elements(
    lora_a: Float[Tensor, "rank inputs"],
    lora_b: Float[Tensor, "outputs rank"],
    *,
    fraction: float = 0.02,
    dtype: torch.dtype = torch.float32,
) -> Int[Tensor, "elements 2"]:
    """(row, column) of the ``floor(fraction * outputs * inputs)`` largest ``|B A|``, the largest first.

    `dtype` is the one in which the product is made: bfloat16, the paper's, leaves many exact ties, and which of
    those at the cut are taken is not defined.
    """
    product = (lora_b.detach().to(dtype) @ lora_a.detach().to(dtype)).float().abs()
    count = math.floor(fraction * product.numel())
    flat = product.flatten().topk(count).indices
    return torch.stack([flat // product.shape[1], flat % product.shape[1]], dim=1)


def accumulate(new: Int[Tensor, "new 2"], previous: Int[Tensor, "old 2"] | None) -> Int[Tensor, "all 2"]:
    """The published list of positions: the newest task's first, repeated positions kept."""
    return new if previous is None else torch.cat([new, previous])


@dataclass(frozen=True, kw_only=True)
class Elements:
    """Positions in one matrix, each with how often it was chosen: 3 bytes a position, not 16.

    They lie in tiles of `tile` columns, one tile after the other, by rows in each.
    """

    shape: tuple[int, int]
    """(outputs, inputs)."""
    tile: int
    """Columns of a tile."""
    row_ends: Int[Tensor, "tiles outputs+1"]
    """int32: positions of row i in tile t are ``row_ends[t, i] .. row_ends[t, i + 1] - 1``."""
    columns: Int[Tensor, " positions"]
    """uint16, or int32 for more than 65536 inputs; counted from the matrix's first, ascending in each row of a tile."""
    counts: Int[Tensor, " positions"]
    """uint8."""
    chosen: int
    """Sum of the counts: the length of the published list."""

    @classmethod
    def of(
        cls, pairs: Int[Tensor, "elements 2"], shape: tuple[int, int], *, multiplicity: Multiplicity = "count"
    ) -> Elements:
        """From (row, column) pairs; repeated pairs count (the code of the paper) or not (its text: a mask)."""
        flat = pairs[:, 0].long() * shape[1] + pairs[:, 1].long()
        return _of_flat(flat, torch.ones_like(flat), shape, multiplicity)

    def add(self, pairs: Int[Tensor, "elements 2"], *, multiplicity: Multiplicity = "count") -> Elements:
        """These positions and more, in one set."""
        new = pairs[:, 0].long() * self.shape[1] + pairs[:, 1].long()
        flat = torch.cat([self.flat(), new])
        counts = torch.cat([self.counts.long(), torch.ones_like(new)])
        return _of_flat(flat, counts, self.shape, multiplicity)

    def flat(self) -> Int[Tensor, " positions"]:
        """``row * inputs + column``, int64, in the order in which they lie."""
        lines = _members(self.row_ends.diff().flatten(), len(self.columns))  # a line: a row of a tile
        return lines % self.shape[0] * self.shape[1] + self.columns.long()

    def to(self, device: torch.device) -> Elements:
        moved = {name: getattr(self, name).to(device) for name in ("row_ends", "columns", "counts")}
        return Elements(shape=self.shape, tile=self.tile, chosen=self.chosen, **moved)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON; `from_state` reads it."""
        return {
            "shape": list(self.shape),
            "tile": self.tile,
            "row_ends": self.row_ends,
            "columns": self.columns,
            "counts": self.counts,
            "chosen": self.chosen,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Elements:
        return cls(**{**state, "shape": tuple(state["shape"])})

    @cached_property
    def spans(self) -> list[list[int]]:
        """First position of each tile and the one after its last: read from the device once, not in every step."""
        return self.row_ends[:, :: self.shape[0]].tolist()

    @property
    def stored_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.row_ends, self.columns, self.counts))


def mean_magnitude(
    lora_a: Float[Tensor, "rank inputs"], lora_b: Float[Tensor, "outputs rank"], elements: Elements
) -> Float[Tensor, ""]:
    """``sum C |B A| / sum C`` over the elements, with counts C; 0 if there are none. Differentiable.

    Made in float32 (float64 for float64 matrices). At B = 0 value and gradients are exactly 0.
    """
    assert tuple(elements.shape) == (lora_b.shape[0], lora_a.shape[1]), (elements.shape, lora_b.shape)
    return _MeanMagnitude.apply(lora_a, lora_b, elements)  # type: ignore[return-value]


def dense_mean_magnitude(
    lora_a: Float[Tensor, "rank inputs"],
    lora_b: Float[Tensor, "outputs rank"],
    pairs: Int[Tensor, "elements 2"],
) -> Float[Tensor, ""]:
    """The same from the published list through the whole product: the plain schedule, for comparison."""
    product = lora_b @ lora_a
    chosen = product[pairs[:, 0].long(), pairs[:, 1].long()]
    return chosen.abs().mean() if len(chosen) else product.sum() * 0


class _MeanMagnitude(torch.autograd.Function):
    """Keeps one signed byte a position for the backward pass, not the product's entries."""

    @staticmethod
    def forward(ctx: Any, lora_a: Tensor, lora_b: Tensor, elements: Elements) -> Tensor:
        ctx.elements = elements
        if elements.chosen == 0:
            ctx.save_for_backward(lora_a, lora_b)
            return lora_a.new_zeros(())
        a, b = _wide(lora_a), _wide(lora_b)
        values = (_dense_entries if _is_dense(elements) else _entries)(a, b, elements)
        # counts fit into a byte but not always into a signed one: keep the sign alone
        ctx.save_for_backward(lora_a, lora_b, values.sign().to(torch.int8))
        return (torch.dot(values.abs(), elements.counts.to(values.dtype)) / elements.chosen).to(lora_a.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        elements: Elements = ctx.elements
        lora_a, lora_b, *rest = ctx.saved_tensors
        if not rest:
            return torch.zeros_like(lora_a), torch.zeros_like(lora_b), None
        a, b = _wide(lora_a), _wide(lora_b)
        weights = elements.counts.to(a.dtype).mul_(rest[0]).mul_(grad.to(a.dtype) / elements.chosen)
        gradients = (_dense_gradients if _is_dense(elements) else _gradients)(a, b, weights, elements)
        grad_a, grad_b = gradients
        return grad_a.to(lora_a.dtype), grad_b.to(lora_b.dtype), None


def _wide(matrix: Tensor) -> Tensor:
    return matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))


def _is_dense(elements: Elements) -> bool:
    """Whether whole tiles of the product cost less than its entries one by one."""
    return len(elements.columns) > DENSE * elements.shape[0] * elements.shape[1]


@dataclass(frozen=True, kw_only=True)
class _Tile:
    """Some rows of some columns: a sparse matrix of its own."""

    rows: slice
    columns: slice
    span: slice
    """Where its positions lie."""
    ends: Tensor
    """int32: where each row's positions end, from the tile's first."""
    inner: Tensor
    """int32: columns from the tile's first."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def _tiles(elements: Elements, height: int | None = None) -> Iterator[_Tile]:
    """Tiles of at most `height` rows, in the order in which positions lie."""
    outputs, inputs = elements.shape
    height = height or outputs
    starts = [*range(0, outputs, height), outputs]
    cuts = elements.spans if height == outputs else elements.row_ends[:, starts].tolist()
    for t, ends in enumerate(elements.row_ends):
        columns = slice(t * elements.tile, min(inputs, (t + 1) * elements.tile))
        for start, stop, first, last in zip(starts, starts[1:], cuts[t], cuts[t][1:]):
            inner = elements.columns[first:last].int() - columns.start
            own = ends[start : stop + 1] - first
            yield _Tile(rows=slice(start, stop), columns=columns, span=slice(first, last), ends=own, inner=inner)


def _entries(a: Tensor, b: Tensor, elements: Elements) -> Tensor:
    """The product's entries at the positions, in their order."""
    turned, found = a.T.contiguous(), []
    with warnings.catch_warnings(), torch.autocast(a.device.type, enabled=False):
        warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)", category=UserWarning)
        for t in _tiles(elements):
            values = elements.counts[t.span].to(a.dtype)  # only the shape matters: beta is 0
            pattern = torch.sparse_csr_tensor(t.ends, t.inner, values, size=t.shape, check_invariants=False)
            found.append(torch.sparse.sampled_addmm(pattern, b, turned[t.columns].T, beta=0.0).values())
    return torch.cat(found)


def _gradients(a: Tensor, b: Tensor, weights: Tensor, elements: Elements) -> tuple[Tensor, Tensor]:
    """``(B^T G, G A^T)`` for G with `weights` at the positions: weighted sums of B's rows and of A's columns."""
    turned = a.T.contiguous()
    grad_a, grad_b = torch.zeros_like(turned), torch.zeros_like(b)
    for t in _tiles(elements, TILE if a.device.type == "cpu" else None):
        own = weights[t.span]
        # 1) a row of dR/dB: the columns of A at the row's positions, weighted
        grad_b[t.rows] += _weighted_sums(turned[t.columns], t.inner, t.ends, own)
        # 2) a column of dR/dA: the rows of B at the column's positions, weighted; the pattern by columns is made in
        # passing, for kept it would double the memory
        ends, rows, by_column = _transposed(t, own)
        grad_a[t.columns] += _weighted_sums(b[t.rows], rows, ends, by_column)
    return grad_a.T, grad_b


def _weighted_sums(table: Tensor, indices: Tensor, ends: Tensor, weights: Tensor) -> Tensor:
    """A sparse times a thin dense matrix; `embedding_bag` is twice as fast at it as torch's sparse product."""
    return F.embedding_bag(indices, table, ends, per_sample_weights=weights, mode="sum", include_last_offset=True)


def _transposed(tile: _Tile, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A tile's positions by columns: where each ends, rows, weights."""
    if weights.device.type == "cpu":
        from scipy.sparse import csr_matrix

        turned = csr_matrix((weights.numpy(), tile.inner.numpy(), tile.ends.numpy()), shape=tile.shape).tocsc()
        return torch.from_numpy(turned.indptr), torch.from_numpy(turned.indices), torch.from_numpy(turned.data)
    order = tile.inner.sort(stable=True).indices
    rows = _members(tile.ends.diff(), len(order)).int()
    return _ends(tile.inner, tile.shape[1]), rows.index_select(0, order), weights.index_select(0, order)


def _dense_entries(a: Tensor, b: Tensor, elements: Elements) -> Tensor:
    """`_entries` through the whole product, some rows at a time."""
    found = []
    for t in _tiles(elements, DENSE_ROWS):
        found.append((b[t.rows] @ a[:, t.columns]).view(-1).index_select(0, _places(t)))
    return torch.cat(found)


def _dense_gradients(a: Tensor, b: Tensor, weights: Tensor, elements: Elements) -> tuple[Tensor, Tensor]:
    """`_gradients` through a whole G, some rows at a time."""
    grad_a, grad_b = torch.zeros_like(a), torch.zeros_like(b)
    for t in _tiles(elements, DENSE_ROWS):
        g = a.new_zeros(t.shape)
        g.view(-1)[_places(t)] = weights[t.span]
        grad_b[t.rows].addmm_(g, a[:, t.columns].T)
        grad_a[:, t.columns].addmm_(b[t.rows].T, g)
    return grad_a, grad_b


def _places(tile: _Tile) -> Tensor:
    """Positions within the tile, by rows, int64."""
    return _members(tile.ends.diff(), len(tile.inner)) * tile.shape[1] + tile.inner


def _of_flat(flat: Tensor, counts: Tensor, shape: tuple[int, int], multiplicity: Multiplicity) -> Elements:
    outputs, inputs = shape
    # on a GPU a few large kernels are quicker than many small ones
    tile = min(TILE, inputs) if flat.device.type == "cpu" else inputs
    tiles = -(-inputs // tile)
    by_tile = (flat % inputs // tile * outputs + flat // inputs) * inputs + flat % inputs
    positions, place = by_tile.unique(return_inverse=True)
    total = torch.zeros_like(positions).index_add_(0, place, counts)
    total = total.clamp(max=255 if multiplicity == "count" else 1)
    lines = _ends(positions // inputs, tiles * outputs)  # a line: a row of a tile
    starts = torch.arange(tiles, device=flat.device)[:, None] * outputs
    return Elements(
        shape=shape,
        tile=tile,
        row_ends=lines[starts + torch.arange(outputs + 1, device=flat.device)],
        columns=(positions % inputs).to(torch.uint16 if inputs <= 65536 else torch.int32),
        counts=total.to(torch.uint8),
        chosen=int(total.sum()),
    )


def _ends(members: Tensor, size: int) -> Tensor:
    """Where each of `size` groups ends (after a leading 0) in a list sorted by group; `members`: a group each."""
    ends = torch.zeros(size + 1, dtype=torch.int32, device=members.device)
    ends[1:] = torch.bincount(members, minlength=size).cumsum(0)
    return ends


def _members(lengths: Tensor, count: int) -> Tensor:
    """The group of each of `count` members, int64: the inverse of `_ends`."""
    groups = torch.arange(len(lengths), device=lengths.device)
    return torch.repeat_interleave(groups, lengths, output_size=count)
