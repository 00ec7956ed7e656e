"""Prompts that stand before keys and values of a vision transformer."""

from __future__ import annotations

import pytest
import torch

from perdure import recipe
from perdure.errors import RecipeError
from perdure.families.class_incremental import coda
from perdure.models.vit import Insertions
from tests.tiny_vit import fresh_vit


@pytest.mark.parametrize(
    "name, setting",
    [
        ("coda_prompt", "length"),
        ("l2p_prefix", "length"),
        ("dualprompt_coda", "general_length"),
        ("dualprompt_coda", "expert_length"),
    ],
)
def test_an_odd_length_has_no_half_for_keys(name, setting):
    with pytest.raises(RecipeError, match="a multiple of 2, found 7"):
        recipe.load(f"{name}/microworld", [f"method.{setting}=7"])
    assert recipe.load(f"{name}/microworld", [f"method.{setting}=6"])


def test_more_values_than_keys_are_an_error_before_attention_reads_beyond_them():
    model = fresh_vit()
    pixels = torch.rand(2, 3, 16, 16)
    for length in (6, 7):
        keys, values = coda.halves(torch.rand(2, length, 16))
        inserted = Insertions(prefixes={0: (keys, values)})
        if length == 6:
            assert model.image_features(pixels, inserted).isfinite().all()
            continue
        with pytest.raises(ValueError, match="3 keys and 4 values"):
            model.image_features(pixels, inserted)
