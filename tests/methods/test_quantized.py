"""Tuning of quantized language models (QLoRA): nothing is merged into them, and nothing is lost."""

from dataclasses import replace

import pytest
import torch

from perdure.errors import Interrupted, MissingExtra, RecipeError
from perdure.families.instruction import stacked
from perdure.files.tensor_files import shapes
from perdure.methods.sefe import Config, Sefe
from perdure.models import vlm
from tests import tiny_vlm
from tests.methods.test_instruction_families import TUNING, learned, made, same

HOW = ("nf4", "int8")


def test_what_is_not_installed_is_named(vlm_root, monkeypatch):
    monkeypatch.setattr("perdure.models.vlm.quantized.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="quantize=nf4 needs bitsandbytes") as fault:
        made(vlm_root, "qwen2_vl", "sefe", quantize="nf4")
    assert 'pip install "perdure[quantize]"' in str(fault.value)


@pytest.mark.parametrize("how", HOW)
def test_updates_are_learned_beside_quantized_weights_resumed_and_exported(vlm_root, tmp_path, how):
    pytest.importorskip("bitsandbytes")
    settings = {"quantize": how, "dtype": "float32" if how == "nf4" else "bfloat16"}
    first = made(vlm_root, "qwen2_vl", "sefe", **settings)
    assert first.adapters.stacks
    layers = [type(m).__name__ for m in first.llm.language_model.modules()]
    assert sum(name in ("Linear4bit", "Linear8bitLt") for name in layers) >= 14
    assert not any("bit" in type(m).__name__.lower() for m in first.llm.model.model.visual.modules())
    before = {name: m.dense().clone() for name, m in first.adapters.matrices.items()}

    method, scores, penalties = learned(first, tmp_path / "straight")
    assert penalties[-1] > 0
    assert all(torch.equal(m.dense(), before[name]) for name, m in method.adapters.matrices.items())
    with pytest.raises(Interrupted):
        learned(made(vlm_root, "qwen2_vl", "sefe", **settings), tmp_path / "cut", stop_after=7)
    again, rows, _ = learned(made(vlm_root, "qwen2_vl", "sefe", **settings), tmp_path / "cut")
    assert rows.rows == scores.rows
    assert same(again.state_dict(), method.state_dict())

    method.export(tmp_path / "model")
    plain = vlm.load(vlm.Config(weights=str(tmp_path / "model"), dtype=settings["dtype"]))
    assert not hasattr(plain.model.config, "quantization_config")
    assert shapes(str(tmp_path / "model")) == shapes(str(tiny_vlm.folder(vlm_root, "qwen2_vl")))
    for name, m in method.adapters.matrices.items():
        a, b = stacked.factors(m.layer.base_layer)
        weight = plain.language_model.get_submodule(name).weight
        torch.testing.assert_close(weight, (before[name].float() + b @ a).to(weight.dtype))
    if how == "nf4":  # int8 rounds what goes into a layer too
        batch = method.collate([method.preprocess(e, True) for e in tiny_vlm.examples()])
        with torch.no_grad():
            torch.testing.assert_close(
                plain.answer_logits(batch)[0], method.llm.answer_logits(batch)[0], rtol=1e-4, atol=1e-4
            )


def test_merging_into_quantized_weights_is_refused(vlm_root):
    pytest.importorskip("bitsandbytes")
    llm = vlm.load(vlm.Config(weights=str(tiny_vlm.folder(vlm_root, "smolvlm")), dtype="float32", quantize="nf4"))
    with pytest.raises(RecipeError, match="cannot be merged into quantized weights"):
        Sefe(Config(tuning=replace(TUNING, past="merged")), llm=llm)
