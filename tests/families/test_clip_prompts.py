"""Prompts that a CLIP cannot tell apart are refused."""

import pytest
import torch

from perdure.errors import DataError
from perdure.families.clip import classifier
from perdure.models import clip


@pytest.mark.slow
def test_class_names_outside_the_vocabulary_are_refused_by_name():
    micro = clip.load(clip.Config(weights="micro-clip"))
    with pytest.raises(DataError, match=r"'a photo of a 0\.' and 'a photo of a 1\.' are the same"):
        classifier.encode_prompts(micro, ["a photo of a 0.", "a photo of a 1."])


@pytest.mark.slow
def test_one_name_of_two_classes_is_allowed():
    micro = clip.load(clip.Config(weights="micro-clip"))
    features = classifier.encode_prompts(micro, ["a photo of a star.", "a photo of a star."])
    assert torch.equal(features[0], features[1])
