"""Backbones give the features that transformers and timm give, from every form of weights, or say why not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, DeiTConfig, DeiTModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from perdure.errors import RecipeError, WeightsError
from perdure.models import clip, vit

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "patch_size": 4}


@pytest.fixture
def pixels():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def lively(model):
    """Weights far from their first values, so that a part in the wrong place shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def same(found, wanted):
    torch.testing.assert_close(found, wanted.detach(), atol=1e-4, rtol=1e-4)


def test_a_folder_of_transformers(tmp_path, pixels):
    model = lively(ViTModel(ViTConfig(**SIZES, image_size=16, layer_norm_eps=1e-3)))
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ViTImageProcessor",
                "size": {"height": 16, "width": 16},
                "do_center_crop": False,
                "resample": 2,
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
            }
        )
    )
    loaded = vit.load(vit.Config(weights=str(tmp_path)))
    same(loaded.image_features(pixels), model(pixels).last_hidden_state[:, 0])
    assert (loaded.dim, loaded.depth) == (32, 2)
    assert loaded.transform.interpolation == "bilinear"
    assert loaded.transform.mean == (0.5, 0.5, 0.5)
    assert not any(p.requires_grad for p in loaded.parameters())
    raw = vit.load(vit.Config(weights=str(tmp_path), normalize="none"))
    assert raw.transform.normalize(torch.full((3, 1, 1), 255, dtype=torch.uint8)).unique().tolist() == [1]


def test_dinov2_with_layer_scale_and_other_positions(tmp_path, pixels):
    model = lively(Dinov2Model(Dinov2Config(**SIZES | {"mlp_ratio": 2}, image_size=16)))
    model.save_pretrained(tmp_path)
    loaded = vit.load(vit.Config(weights=str(tmp_path), image_size=16))
    same(loaded.image_features(pixels), model(pixels).last_hidden_state[:, 0])
    larger = vit.load(vit.Config(weights=str(tmp_path), image_size=24))
    assert larger.transform.size == 24
    assert larger.image_features(torch.rand(1, 3, 24, 24)).shape == (1, 32)


def test_deit_with_its_distillation_token(tmp_path, pixels):
    model = lively(DeiTModel(DeiTConfig(**SIZES, image_size=16, layer_norm_eps=1e-6), add_pooling_layer=False))
    model.save_pretrained(tmp_path)
    loaded = vit.load(vit.Config(weights=str(tmp_path)))
    same(loaded.image_features(pixels), model(pixels).last_hidden_state[:, 0])
    assert loaded.tokens(pixels).shape == (3, 18, 32)
    larger = vit.load(vit.Config(weights=str(tmp_path), image_size=24))
    assert larger.image_features(torch.rand(1, 3, 24, 24)).shape == (1, 32)


@pytest.mark.parametrize("kind, mean", [("vit", 0.5), ("dinov2", 0.485), ("deit", 0.485)])
def test_without_a_processor_pixels_are_normalized_as_the_family_was_trained(tmp_path, kind, mean):
    AutoModel.from_config(AutoConfig.for_model(kind, **SIZES, image_size=16)).save_pretrained(tmp_path)
    loaded = vit.load(vit.Config(weights=str(tmp_path), image_size=16))
    assert loaded.transform.mean[0] == mean
    assert f"no preprocessor_config.json; pixels are normalized by mean {mean}" in loaded.notes[0]
    assert vit.load(vit.Config(weights=str(tmp_path), image_size=16, normalize="none")).notes == ()
    assert vit.load(vit.Config(weights="micro-vit")).notes == ()


def test_the_image_tower_of_a_clip():
    theirs = clip.load(clip.Config(weights="micro-clip"))
    tower = vit.load(vit.Config(weights="micro-clip"))
    pixels = torch.rand(2, 3, 32, 32)
    same(tower.image_features(pixels), theirs.model.vision_model(pixels).pooler_output)
    assert tower.transform == theirs.transform


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_clip_quickgelu_224"])
def test_a_folder_of_timm(tmp_path, pixels, name):
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0}
    model = lively(timm.create_model(name, **sizes))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    card = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.9, "interpolation": "bicubic"}
    said = {"architecture": name, "pretrained_cfg": card, "model_args": sizes}
    (tmp_path / "config.json").write_text(json.dumps(said))
    loaded = vit.load(vit.Config(weights=str(tmp_path)))
    same(loaded.image_features(pixels), model(pixels))
    assert loaded.is_plain
    assert loaded.transform.shorter_side == 17
    assert loaded.transform.mean == (0.1, 0.2, 0.3)


def saved_by_timm(folder, name, **sizes):
    """A lively model as timm's `save_for_hf` leaves it."""
    timm = pytest.importorskip("timm")
    model = lively(timm.create_model(name, num_classes=0, **sizes))
    timm.models.save_for_hf(model, folder, model_args=sizes)
    return model


@pytest.mark.parametrize("name", ["vit_huge_patch14_224", "vit_giant_patch14_clip_224", "vit_tiny_patch16_224"])
def test_heads_are_those_of_the_architecture_or_of_its_arguments(tmp_path, name):
    model = saved_by_timm(tmp_path, name, img_size=112, depth=1)
    pixels = torch.rand(2, 3, *model.patch_embed.img_size)
    loaded = vit.load(vit.Config(weights=str(tmp_path)))
    same(loaded.image_features(pixels), model(pixels))
    assert loaded.is_plain


def test_a_width_of_ones_own_has_the_heads_that_the_folder_states(tmp_path, pixels):
    model = saved_by_timm(tmp_path, "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=48, num_heads=4)
    loaded = vit.load(vit.Config(weights=str(tmp_path)))
    same(loaded.image_features(pixels), model(pixels))
    save_file(model.state_dict(), tmp_path / "alone.safetensors")
    with pytest.raises(WeightsError, match=r"how many heads .* width 48"):
        vit.load(vit.Config(weights=str(tmp_path / "alone.safetensors")))


def test_what_is_taken_for_plain_is_plain_in_timm():
    """Every architecture that this timm has: its blocks, heads, epsilon and GELU."""
    timm = pytest.importorskip("timm")
    plain = [name for name in timm.list_models(["vit_*", "deit_*"]) if vit._PLAIN.fullmatch(name)]
    assert len(plain) > 30
    for name in plain:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0, depth=1)
        block = model.blocks[0]
        assert type(model).__name__ == "VisionTransformer"
        assert type(block).__name__ == "Block"
        assert type(block.mlp.act).__name__ == ("QuickGELU" if "quickgelu" in name else "GELU")
        assert block.norm1.eps == (1e-5 if "clip" in name else 1e-6)
        assert (model.global_pool, model.num_prefix_tokens) == ("token", 1)
        width = 896 if "_plus_" in name else vit._WIDTHS[name.split("_")[1]]
        assert (model.embed_dim, block.attn.num_heads) == (width, vit.formats.HEADS[width])


def test_architectures_that_plain_ones_resemble_are_timms_own(tmp_path, pixels):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    model = saved_by_timm(tmp_path, "vit_small_patch16_rope_ape_224", **sizes)
    loaded = vit.load(vit.Config(weights=str(tmp_path)))
    assert not loaded.is_plain
    same(loaded.image_features(pixels), model(pixels))


def test_any_other_architecture_of_timm_gives_features_alone(tmp_path, pixels):
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    said = {"architecture": "resnet10t", "pretrained_cfg": {"input_size": [3, 64, 64]}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    loaded = vit.load(vit.Config(weights=str(tmp_path)))
    same(loaded.image_features(pixels), model(pixels))
    with pytest.raises(RecipeError, match="plain vision transformer"):
        loaded.tokens(pixels)


def test_what_timm_refuses_is_said_with_its_reason(tmp_path):
    saved_by_timm(tmp_path, "resnet10t")
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(said | {"architecture": "resnet14t"}))
    with pytest.raises(WeightsError, match=r"Error\(s\) in loading state_dict for ResNet: Missing key\(s\)"):
        vit.load(vit.Config(weights=str(tmp_path)))


def test_a_file_of_timms_names_and_the_first_release(tmp_path, pixels):
    timm = pytest.importorskip("timm")
    model = lively(timm.models.VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4))
    torch.save({"model": 1}, tmp_path / "odd.pth")
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    loaded = vit.load(vit.Config(weights=str(tmp_path / "vit.pth"), heads=4))
    same(loaded.image_features(pixels), model.forward_features(pixels)[:, 0])
    np.savez(tmp_path / "vit.npz", **as_first_released(model.state_dict(), heads=4))
    again = vit.load(vit.Config(weights=str(tmp_path / "vit.npz"), heads=4))
    same(again.image_features(pixels), loaded.image_features(pixels))
    with pytest.raises(WeightsError):
        vit.load(vit.Config(weights=str(tmp_path / "odd.pth")))


def as_first_released(state, *, heads):
    """The arrays of ViT-B_16.npz: kernels transposed, heads apart."""
    arrays = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for i in range(2):
        block, ours = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        attention = f"{block}MultiHeadDotProductAttention_1/"
        weights, biases = state[f"{ours}attn.qkv.weight"].chunk(3), state[f"{ours}attn.qkv.bias"].chunk(3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases):
            arrays[f"{attention}{name}/kernel"] = weight.T.unflatten(1, (heads, -1))
            arrays[f"{attention}{name}/bias"] = bias.unflatten(0, (heads, -1))
        arrays[f"{attention}out/kernel"] = state[f"{ours}attn.proj.weight"].T.unflatten(0, (heads, -1))
        arrays[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
        for theirs, own in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            arrays[f"{block}{theirs}/scale"] = state[f"{ours}{own}.weight"]
            arrays[f"{block}{theirs}/bias"] = state[f"{ours}{own}.bias"]
        for theirs, own in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
            arrays[f"{block}MlpBlock_3/{theirs}/kernel"] = state[f"{ours}mlp.{own}.weight"].T
            arrays[f"{block}MlpBlock_3/{theirs}/bias"] = state[f"{ours}mlp.{own}.bias"]
    return {name: tensor.numpy() for name, tensor in arrays.items()}


def test_what_is_no_backbone_is_refused_by_name(tmp_path):
    ViTModel(ViTConfig(**SIZES, image_size=16)).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("layernorm.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"has no tensor 'norm\.weight'"):
        vit.load(vit.Config(weights=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(WeightsError, match="bert"):
        vit.load(vit.Config(weights=str(tmp_path)))
