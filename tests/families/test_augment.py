"""Batched crops and mirror images, equal to the ones made image by image."""

from __future__ import annotations

import torch
from torchvision.transforms.v2 import functional as V

from perdure.families.rehearsal import augment


def test_each_image_is_the_crop_that_its_numbers_say():
    images = torch.randint(0, 256, (40, 3, 8, 6), dtype=torch.uint8)
    uniforms = torch.rand(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = augment.crop_and_flip(images, uniforms, padding=2)
    for image, (top, left, mirror), result in zip(images, uniforms.tolist(), found):
        expected = V.crop(V.pad(image, [2, 2, 2, 2]), int(top * 5), int(left * 5), 8, 6)
        assert torch.equal(result, V.horizontal_flip(expected) if mirror < 0.5 else expected)


def test_all_crops_and_both_directions_are_equally_likely():
    count = 20_000
    # The pixel's place after the crop tells the offsets; a second one tells the direction.
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 4], image[0, 0, 4, 5] = 1, 2
    uniforms = torch.rand(count, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = augment.crop_and_flip(image.expand(count, -1, -1, -1), uniforms, padding=2)
    where = (found[:, 0] == 1).nonzero()
    other = (found[:, 0] == 2).nonzero()
    mirrored = other[:, 2] < where[:, 2]
    cells = torch.bincount(where[:, 1] * 9 + where[:, 2], minlength=81)
    cells = cells[cells > 0]
    assert len(cells) == 25
    share = 1 / 25
    assert ((cells - count * share).abs() < 5 * (count * share * (1 - share)) ** 0.5).all()
    assert abs(int(mirrored.sum()) - count / 2) < 5 * (count / 4) ** 0.5


def test_bytes_become_fractions_and_floats_stay():
    assert (
        augment.as_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == torch.tensor([0, 0.2, 1]).tolist()
    )
    values = torch.tensor([0.25], dtype=torch.float64)
    assert augment.as_float(values, torch.float64).item() == 0.25
