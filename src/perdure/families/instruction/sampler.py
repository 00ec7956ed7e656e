"""The order of training examples that keeps batches of one modality and of like lengths.

Knows lengths only. All randomness is in the function that draws permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Draw = Callable[[int], Sequence[int]]
"""n -> a permutation of 0..n-1."""


def modality_grouped_order(lengths: Sequence[int], draw: Draw, *, batch_size: int, processes: int = 1) -> list[int]:
    """All positions in an order in which batches hold either images or texts alone.

    Args:
        lengths: positive with an image, negative without.
        batch_size: of each process.

    Each modality is grouped by length and cut into batches of all processes; these come in a random order,
    but for the last of either modality, which are merged at the end.
    """
    if all(n > 0 for n in lengths) or all(n < 0 for n in lengths):
        return length_grouped_order(lengths, draw, batch_size=batch_size, processes=processes)
    whole = batch_size * processes
    batches, rest = [], []
    for sign in (1, -1):
        members = [i for i, n in enumerate(lengths) if n * sign > 0]
        own = [abs(lengths[i]) for i in members]
        order = length_grouped_order(own, draw, batch_size=batch_size, processes=processes)
        cut = _cut([members[i] for i in order], whole)
        batches += cut[:-1]
        rest += cut[-1]
    order = [i for b in draw(len(batches)) for i in batches[int(b)]]
    return order + sorted(rest)


def length_grouped_order(lengths: Sequence[int], draw: Draw, *, batch_size: int, processes: int = 1) -> list[int]:
    """A random order, in which each run of ``batch_size * processes`` is sorted and dealt out to processes."""
    shuffled = [int(i) for i in draw(len(lengths))]
    order: list[int] = []
    for batch in _cut(shuffled, batch_size * processes):
        longest_first = sorted(batch, key=lambda i: lengths[i], reverse=True)
        order += [i for part in _even_parts(longest_first, lengths, processes) for i in part]
    return order


def _even_parts(members: Sequence[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Parts of equal size and nearly equal total length: each member goes to the shortest that has room."""
    size, odd = divmod(len(members), parts)
    if odd:
        return [list(members[i::parts]) for i in range(parts)]
    dealt: list[list[int]] = [[] for _ in range(parts)]
    totals = [0.0] * parts
    for member in members:
        shortest = totals.index(min(totals))
        dealt[shortest].append(member)
        totals[shortest] += lengths[member]
        if len(dealt[shortest]) == size:
            totals[shortest] = float("inf")
    return dealt


def _cut(items: list[int], size: int) -> list[list[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
