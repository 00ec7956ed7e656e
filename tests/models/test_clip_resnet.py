"""CLIP's ResNets: the same features as open_clip's own model, and what is said of other files."""

import open_clip
import pytest
import torch
from open_clip.model import CLIP

from perdure.errors import WeightsError
from perdure.models import clip, clip_resnet


def tiny():
    """open_clip's own CLIP with a ResNet of 1+1+1+1 blocks, 64 px."""
    torch.manual_seed(0)
    vision = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 64, "image_size": 64, "patch_size": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    model = CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = tiny()
    file = tmp_path_factory.mktemp("rn") / "tiny.pt"
    torch.save(model.state_dict(), file)
    return model, file


def test_features_equal_those_of_open_clip(saved):
    theirs, file = saved
    ours = clip_resnet.load(clip_resnet.Config(weights=str(file)))
    pixels = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.image_features(pixels), theirs.encode_image(pixels), rtol=1e-4, atol=1e-5)
        texts = ["a photo of a cat.", "a dog"]
        expected = theirs.encode_text(open_clip.tokenize(texts))
        torch.testing.assert_close(ours.encode_texts(texts), expected, rtol=1e-4, atol=1e-5)
    assert ours.image_size == 64 and ours.dim == 24
    assert ours.provenance()["architecture"] == "ResNet 1+1+1+1x16"
    assert not any(p.requires_grad for p in ours.parameters())


def test_gradients_reach_every_weight_of_the_image_tower_and_no_other(saved):
    ours = clip_resnet.load(clip_resnet.Config(weights=str(saved[1])))
    parameters = ours.visual_parameters()
    for p in parameters.values():
        p.requires_grad_()
    ours.image_features(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in parameters.values())
    assert all(p.grad is None for p in ours.text_parameters().values())


def test_each_loader_sends_the_others_files_to_the_right_place(saved, tmp_path):
    with pytest.raises(WeightsError, match="clip_resnet"):
        clip.load(clip.Config(weights=str(saved[1]), quick_gelu=True))
    torch.save({"visual.proj": torch.zeros(2, 2)}, tmp_path / "vit.pt")
    with pytest.raises(WeightsError, match="use the model `clip`"):
        clip_resnet.load(clip_resnet.Config(weights=str(tmp_path / "vit.pt")))


def test_a_resnet_without_a_layer_is_refused_by_name(saved, tmp_path):
    state = saved[0].state_dict()
    del state["visual.layer2.0.conv2.weight"]
    torch.save(state, tmp_path / "torn.pt")
    with pytest.raises(WeightsError, match=r"layer2\.0\.conv2\.weight"):
        clip_resnet.load(clip_resnet.Config(weights=str(tmp_path / "torn.pt")))
