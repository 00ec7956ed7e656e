"""What lies beside open_clip's weights: the same features as open_clip's own, or a refusal by name."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from torch import nn

from perdure.errors import WeightsError
from perdure.models import clip, clip_resnet
from perdure.models.clip import open_clip_config
from perdure.models.clip.preprocessor import from_folder

VISION = {"image_size": 16, "patch_size": 8, "width": 96, "layers": 2, "head_width": 48}
TEXT = {"context_length": 10, "vocab_size": 30, "width": 32, "heads": 4, "layers": 2}
CONFIGS = sorted(Path(open_clip.__file__).parent.joinpath("model_configs").glob("*.json"))


def theirs(quick_gelu=False, vision=None, text=None):
    """open_clip's own model, and the configuration that its folder has."""
    torch.manual_seed(0)
    config = {"embed_dim": 20, "vision_cfg": VISION | (vision or {}), "text_cfg": TEXT | (text or {})}
    model = open_clip.CLIP(**config, quick_gelu=quick_gelu).eval()
    for p in model.parameters():
        p.data.normal_(0, 0.15)
    return model, config | {"quick_gelu": quick_gelu}


def folder_of(path, model, config, preprocess=None):
    path.mkdir(exist_ok=True)
    torch.save(model.state_dict(), path / "open_clip_pytorch_model.bin")
    said = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (path / "open_clip_config.json").write_text(json.dumps(said))
    return str(path)


@pytest.mark.parametrize(
    ("quick_gelu", "vision", "text"),
    [
        (False, {}, {}),
        (True, {}, {}),
        (False, {"head_width": 12}, {"heads": 1}),
        (False, {"mlp_ratio": 4.3637}, {"mlp_ratio": 2.0}),
        (False, {"norm_kwargs": {"eps": 0.05}}, {"norm_kwargs": {"eps": 0.1}, "act_kwargs": {"approximate": "tanh"}}),
        (False, {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {}}, {"pool_type": "eos", "eos_id": 29}),
    ],
    ids=["plain", "quick_gelu", "heads", "mlp_ratio", "norm_kwargs", "act_kwargs"],
)
def test_features_equal_those_of_open_clip(quick_gelu, vision, text, tmp_path):
    model, config = theirs(quick_gelu, vision, text)
    ours = clip.load(clip.Config(weights=folder_of(tmp_path / "m", model, config)))
    images, ids = torch.randn(2, 3, 16, 16), torch.tensor([[28, 3, 29, 0, 0], [28, 5, 6, 7, 29]])
    ids = nn.functional.pad(ids, (0, 5))
    with torch.no_grad():
        torch.testing.assert_close(ours.image_features(images), model.encode_image(images))
        torch.testing.assert_close(ours.text_features(ids), model.encode_text(ids))


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_resnet_takes_heads_and_activation_from_beside_its_weights(quick_gelu, tmp_path):
    vision = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "image_size": 64, "patch_size": None}
    model, config = theirs(quick_gelu, vision, {"width": 64, "heads": 2, "norm_kwargs": {"eps": 0.1}})
    ours = clip_resnet.load(clip_resnet.Config(weights=folder_of(tmp_path / "m", model, config)))
    images, ids = torch.randn(2, 3, 64, 64), torch.tensor([[28, 3, 29, 0, 0, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(ours.image_features(images), model.encode_image(images), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(ours.text_features(ids), model.encode_text(ids), rtol=1e-4, atol=1e-4)


def _heads(config: dict) -> tuple[int, int]:
    """What open_clip builds: its towers' own heads."""
    vision = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    text = open_clip.CLIPTextCfg(**config["text_cfg"])
    in_pooling = 32 if isinstance(vision.layers, list) else 1
    return vision.width * in_pooling // vision.head_width, text.heads


def test_each_published_configuration_is_taken_with_its_heads_or_refused_by_name(tmp_path):
    taken = set()
    for file in CONFIGS:
        config = json.loads(file.read_text())
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        stated = {*config, *config["vision_cfg"], *config["text_cfg"]}
        try:
            said = open_clip_config.beside(tmp_path)
        except WeightsError as refused:
            assert any(f"{name} is" in refused.what for name in stated), file
            continue
        assert said is not None and said.heads == _heads(config), file
        assert said.quick_gelu == config.get("quick_gelu", False)
        assert not {"timm_model_name", "hf_model_name", "multimodal_cfg", "no_ln_pre", "init_logit_bias"} & stated
        taken.add(file.stem)
    assert {"ViT-B-32", "ViT-H-14", "ViT-g-14", "ViT-bigG-14", "ViT-e-14", "RN50", "RN50-quickgelu", "RN50x64"} <= taken
    assert len(taken) >= 40


UNLIKE_VISION = [{"no_ln_pre": True}, {"pool_type": "avg"}, {"qk_norm": True}, {"ls_init_value": 0.1}]
UNLIKE_VISION += [{"head_width": 0}, {"patches": 3}, {"width": 64}, {"image_size": 32}, {"layers": 9}]
UNLIKE_TEXT = [{"proj_type": "none"}, {"proj": "mlp"}, {"embed_cls": True}, {"pool_type": "last"}]
UNLIKE_TEXT += [{"context_length": 77}, {"hf_tokenizer_name": "a/b"}, {"no_causal_mask": True}]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        *(
            ("vision_cfg", {name: value})
            for name, value in {"no_ln_pre": True, "pool_type": "avg", "qk_norm": True}.items()
        ),
        *(
            ("vision_cfg", {name: value})
            for name, value in {"ls_init_value": 0.1, "head_width": 0, "patches": 3}.items()
        ),
        *(("vision_cfg", field) for field in UNLIKE_VISION),
        *(("text_cfg", field) for field in UNLIKE_TEXT),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "canonicalize"}}),
        ("model_cfg", {"multimodal_cfg": {"width": 4}}),
        ("model_cfg", {"embed_dim": 21}),
        ("preprocess_cfg", {"resize_mode": "longest"}),
        ("preprocess_cfg", {"interpolation": "nearest"}),
        ("preprocess_cfg", {"size": 32}),
        ("preprocess_cfg", {"gamma": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_field_that_cannot_be_followed_is_refused_by_name(part, said, tmp_path):
    model, config = theirs()
    weights = folder_of(tmp_path / "m", model, config)
    content = {"model_cfg": config, "preprocess_cfg": {}}
    place = content if part == "preprocess_cfg" else config
    content = content | {part: place.get(part, {}) | said} if part != "model_cfg" else {"model_cfg": config | said}
    if part.endswith(("vision_cfg", "text_cfg")):
        content = {"model_cfg": config | {part: config[part] | said}}
    Path(weights, "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=next(iter(said))):
        clip.load(clip.Config(weights=weights))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_preprocessing_equals_that_of_open_clip(interpolation, resize_mode, tmp_path):
    said = {"mean": [0.1, 0.2, 0.3], "std": 0.5, "size": [24, 24], "mode": "RGB", "fill_color": 0}
    said |= {"interpolation": interpolation, "resize_mode": resize_mode}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": said}))
    image = Image.effect_noise((50, 37), 90).convert("RGB")
    expected = open_clip.image_transform(24, False, (0.1, 0.2, 0.3), 0.5, resize_mode, interpolation)(image)
    torch.testing.assert_close(from_folder(tmp_path, size=24)(image), expected, rtol=0, atol=1e-6)


def test_what_open_clip_says_counts_before_hugging_faces_file_for_its_own_weights(tmp_path):
    model, config = theirs()
    weights = folder_of(tmp_path / "m", model, config, {"mean": [0.1, 0.2, 0.3]})
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps({"crop_size": 16, "size": 16}))
    assert clip.load(clip.Config(weights=weights)).transform.mean == (0.1, 0.2, 0.3)


def test_settings_by_hand_go_before_the_file(tmp_path):
    model, config = theirs()
    ours = clip.load(clip.Config(weights=folder_of(tmp_path / "m", model, config), heads=(3, 2), quick_gelu=True))
    assert (ours.vision_config.num_attention_heads, ours.text_config.num_attention_heads) == (3, 2)
    assert ours.vision_config.hidden_act == "quick_gelu"
