"""Class-incremental methods on a ViT or a CLIP against the published code, one golden file after another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from perdure.layers import merging


@pytest.fixture
def vectors(golden):
    return lambda name: arrays(golden("vit_cil") / f"{name}.npz")


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def close(found, wanted, tolerance: float = 1e-9) -> None:
    """Within `tolerance` of the largest number of the reference."""
    found = found.detach().double().numpy() if isinstance(found, Tensor) else np.asarray(found, dtype=float)
    wanted = np.asarray(wanted, dtype=float)
    assert found.shape == wanted.shape
    largest = max(float(np.abs(wanted).max(initial=0)), 1e-300)
    worst = float(np.abs(found - wanted).max(initial=0))
    assert worst <= tolerance * largest, f"{worst / largest:.2e} relative to {largest:.3g}"


def part(data: dict[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, by the rest of their names."""
    return {n.removeprefix(prefix): torch.from_numpy(v.copy()) for n, v in data.items() if n.startswith(prefix)}


# -- merging ------------------------------------------------------------------------------------------------


def states(data) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    count = len({name.split("/")[0] for name in data if name.startswith("ft")})
    return part(data, "pre/"), [part(data, f"ft{i}/") for i in range(count)]


def same_state(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        close(found[name], tensor.numpy(), 1e-12)


def test_task_vectors_are_merged_by_size_sum_and_election(vectors):
    data = vectors("merging")
    pretrained, tuned = states(data)
    taus = [merging.task_vector(pretrained, state) for state in tuned]
    assert set(taus[0]) == set(data["vector_keys"])
    merged = None
    for after, tau in enumerate(taus, 1):
        merged = merging.largest(merged, tau)
        if f"magmax_after{after}/fc.weight" in data:
            step = merging.add_vector(pretrained, merged, 0.5)
            close(step["fc.weight"], data[f"magmax_after{after}/fc.weight"], 1e-12)
    assert merged is not None
    same_state(merging.add_vector(pretrained, merged, 0.5), part(data, "magmax/"))
    same_state(merging.add_vector(pretrained, merged, 1.0), part(data, "magmax1/"))
    same_state(merging.add_vector(pretrained, merging.summed(taus), 1 / len(taus)), part(data, "sum/"))
    close(merging.ties_of_rows(torch.from_numpy(data["ties_flat_in"])), data["ties_flat_out"], 1e-12)
    same_state(merging.add_vector(pretrained, merging.ties(taus), 0.55), part(data, "ties/"))


def test_weights_are_interpolated_and_averaged(vectors):
    data = vectors("merging")
    pretrained, tuned = states(data)
    buffers = ("running_mean", "running_var", "num_batches_tracked", "mask")
    names = [name for name in pretrained if name.split(".")[-1] not in buffers]
    found = sorted({name.split("/")[0] for name in data if name.startswith("wise_alpha")})
    assert found
    for case in found:
        weight = float(case.removeprefix("wise_alpha"))
        wanted = part(data, f"{case}/")
        mixed = merging.interpolate(pretrained, tuned[0], weight, names=names)
        same_state({n: mixed[n] for n in wanted}, wanted)
    start = {n: pretrained[n] for n in names}
    average = with_base = start
    for count, state in enumerate(tuned, 1):
        newest = {n: state[n] for n in names}
        average = merging.running_average(average, newest, count)
        with_base = merging.interpolate(start, merging.running_average(with_base, newest, count), 0.9)
    same_state(pretrained | average, part(data, "running_average/"))  # buffers stay
    same_state(pretrained | with_base, part(data, "running_wise_alpha0.9/"))
