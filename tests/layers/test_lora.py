"""Adapters: where they go, how they start, and that they leave as a PEFT folder."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from tiny_clip import tiny_model
from torch import nn
from transformers import CLIPConfig, CLIPModel

from perdure.errors import CheckpointError, RecipeError
from perdure.layers import lora

MODES = ["vision+only_kv+text", "vision+text", "vision+mlp+text", "vision", "text+only_kv", "mlp+vision"]


def seeded(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def features(model: CLIPModel) -> torch.Tensor:
    """Image and text features of fixed inputs, one matrix."""
    end = model.config.text_config.eos_token_id
    ids = torch.tensor([[end - 1, 3, 4, end], [end - 1, 5, end, 0]])
    dtype = model.logit_scale.dtype
    pixels = torch.randn(2, 3, 16, 16, generator=seeded(1), dtype=dtype)
    images = model.get_image_features(pixels).pooler_output
    return torch.cat([images, model.get_text_features(ids).pooler_output])


def disturb(model: CLIPModel) -> None:
    """Random values everywhere in the adapters."""
    values = {n: torch.randn(t.shape, generator=seeded(2)) for n, t in lora.lora_state(model).items()}
    lora.load_lora_state(model, values)


def test_vit_b16_has_491520_trainable_numbers():
    with torch.device("meta"):
        text = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config={"patch_size": 16}))
    trained = lora.add_clip_lora(model)
    assert sum(p.numel() for p in trained.values()) == 491_520
    assert sum(p.numel() for n, p in trained.items() if n.startswith("vision_model")) == 294_912
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 491_520


@pytest.mark.parametrize("mode", MODES)
def test_nothing_changes_before_training_and_all_changes_after(mode):
    model = tiny_model()
    before = features(model)
    lora.add_clip_lora(model, mode=mode)
    assert torch.equal(features(model), before)
    disturb(model)
    changed = (features(model) - before).abs().amax(dim=1) > 1e-3
    assert changed.tolist() == ["vision" in mode] * 2 + ["text" in mode] * 2


@pytest.mark.parametrize(
    ("mode", "adapted"),
    [
        ("vision+only_kv+text", {"k_proj", "v_proj"}),
        ("vision", {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "patch_embedding"}),
        (
            "text",
            {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "token_embedding", "text_projection"},
        ),
        ("mlp+text", {"mlp"}),
    ],
)
def test_modes_adapt_the_layers_that_they_name(mode, adapted):
    trained = lora.add_clip_lora(tiny_model(), mode=mode)
    assert {name.split(".lora_")[0].split(".")[-1] for name in trained} == adapted


@pytest.mark.parametrize("mode", MODES)
def test_every_adapter_gets_a_gradient_once_it_is_not_zero(mode):
    model = tiny_model()
    trained = lora.add_clip_lora(model, mode=mode)
    disturb(model)
    features(model).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize(("init", "bound"), [("xavier", (6 / (768 + 8)) ** 0.5), ("kaiming", 768**-0.5)])
def test_a_is_uniform_within_its_bound_and_b_is_zero(init, bound):
    model = nn.Sequential(nn.Linear(768, 768))
    state = lora.add_lora(model, targets=["0"], r=8, alpha=1, init=init, generator=seeded())
    assert 0.97 * bound < state["0.lora_A.weight"].abs().max() <= bound
    assert state["0.lora_B.weight"].abs().max() == 0


def test_the_update_is_scaled_by_alpha_over_r():
    layer = nn.Sequential(nn.Linear(2, 2, bias=False))
    nn.init.zeros_(layer[0].weight)
    lora.add_lora(layer, targets=["0"], r=4, alpha=1)
    ones = {"0.lora_A.weight": torch.ones(4, 2), "0.lora_B.weight": torch.ones(2, 4)}
    lora.load_lora_state(layer, ones)
    # A x = (3, 3, 3, 3); B A x = (12, 12); alpha / r = 1/4
    assert layer(torch.tensor([1.0, 2.0])).tolist() == [3.0, 3.0]


def test_the_generator_alone_decides_a_and_the_global_one_is_untouched():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = lora.add_clip_lora(tiny_model(), generator=seeded(7))
    assert torch.equal(torch.rand(3), expected)
    again = lora.add_clip_lora(tiny_model(), generator=seeded(7))
    assert all(torch.equal(first[n], again[n]) for n in first)
    other = lora.add_clip_lora(tiny_model(), generator=seeded(8))
    assert not all(torch.equal(first[n], other[n]) for n in first)


def test_resetting_brings_back_the_start():
    model = tiny_model()
    before = features(model)
    lora.add_clip_lora(model)
    start = lora.lora_state(model)
    disturb(model)
    disturbed = lora.lora_state(model)
    lora.reset_lora(model, start, only_b=True)
    assert torch.equal(features(model), before)
    now = lora.lora_state(model)
    assert all(torch.equal(now[n], (disturbed if "lora_A" in n else start)[n]) for n in now)
    lora.reset_lora(model, start)
    assert all(torch.equal(v, start[n]) for n, v in lora.lora_state(model).items())


@pytest.mark.parametrize("mode", MODES)
def test_without_lora_is_the_base_model_and_leaves_frozen_flags(mode):
    model = tiny_model()
    before = features(model)
    lora.add_clip_lora(model, mode=mode)
    disturb(model)
    trained = lora.freeze_a(model)
    changed = features(model)
    with lora.without_lora(model):
        assert torch.equal(features(model), before)
    assert torch.equal(features(model), changed)
    assert lora.lora_parameters(model).keys() == trained.keys()
    assert 0 < len(trained) < len(lora.lora_state(model))


def test_adapters_follow_float64_and_are_float32_in_half_models():
    assert {p.dtype for p in lora.add_clip_lora(tiny_model().double()).values()} == {torch.float64}
    model = tiny_model().to(torch.bfloat16)
    assert {p.dtype for p in lora.add_clip_lora(model).values()} == {torch.float32}
    assert features(model).dtype == torch.bfloat16


LOAD_WITHOUT_US = """
import sys, torch
from peft import PeftModel
from transformers import CLIPModel
base, adapter, out = sys.argv[1:]
model = PeftModel.from_pretrained(CLIPModel.from_pretrained(base), adapter).eval()
inputs = torch.load(out + ".inputs", weights_only=True)
with torch.no_grad():
    logits = model(**inputs).logits_per_image
assert not any(name.split(".")[0] == "perdure" for name in sys.modules)
torch.save(logits, out)
"""


@pytest.mark.parametrize("mode", ["vision+only_kv+text", "vision+text", "text+only_kv"])
def test_an_exported_adapter_gives_the_same_features_in_peft(tmp_path, mode):
    model = tiny_model()
    lora.add_clip_lora(model, mode=mode)
    disturb(model)
    lora.save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), str(tmp_path)).eval()
    torch.testing.assert_close(features(loaded), features(model))


@pytest.mark.slow
def test_an_exported_adapter_loads_without_perdure(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    lora.add_clip_lora(model)
    disturb(model)
    lora.save_adapter(model, tmp_path / "adapter", base="some/clip")
    end = model.config.text_config.eos_token_id
    inputs = {"input_ids": torch.tensor([[end - 1, 3, 4, end]]), "pixel_values": torch.randn(2, 3, 16, 16)}
    torch.save(inputs, tmp_path / "logits.inputs")
    parts = [str(tmp_path / name) for name in ("base", "adapter", "logits")]
    done = subprocess.run([sys.executable, "-c", LOAD_WITHOUT_US, *parts], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = model(**inputs).logits_per_image
    torch.testing.assert_close(torch.load(tmp_path / "logits", weights_only=True), expected)


def test_bottlenecks_have_no_peft_form(tmp_path):
    model = tiny_model()
    lora.add_clip_lora(model, mode="mlp+vision")
    with pytest.raises(RecipeError, match="no LoRA"):
        lora.save_adapter(model, tmp_path)


@pytest.mark.parametrize("mode", ["", "only_kv", "vision+only_kv+mlp", "visual"])
def test_an_unknown_mode_is_refused_with_the_known_ones(mode):
    with pytest.raises(RecipeError, match=r"one of vision\+only_kv\+text, vision\+only_kv, "):
        lora.add_clip_lora(tiny_model(), mode=mode)


def test_wrong_targets_and_second_adapters_are_refused():
    with pytest.raises(RecipeError, match="cannot be added"):
        lora.add_lora(tiny_model(), targets=["no_such_layer"], r=2, alpha=1)
    model = tiny_model()
    lora.add_clip_lora(model)
    with pytest.raises(RecipeError, match="already"):
        lora.add_clip_lora(model, mode="vision+mlp")


def test_a_foreign_state_is_refused():
    model = tiny_model()
    lora.add_clip_lora(model)
    state = lora.lora_state(model)
    with pytest.raises(CheckpointError, match="rank"):
        lora.load_lora_state(model, {n: v[:1] for n, v in state.items()})
    state.popitem()
    with pytest.raises(CheckpointError, match="1 places"):
        lora.load_lora_state(model, state)
