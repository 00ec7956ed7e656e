"""CLAP: loading from a folder and from LAION's names, the front end, and the tower block by block."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tiny_audio_visual as tiny
import torch
from transformers import ClapFeatureExtractor, ClapModel

from perdure.errors import DataError, WeightsError
from perdure.models import clap
from perdure.models.clap import FrontEnd, preprocessor
from perdure.models.clap.convert import from_laion
from perdure.models.clap.mel import tiled_power


def laion_names(model: ClapModel) -> dict[str, torch.Tensor]:
    """The model's weights under LAION's names, with what its checkpoints hold besides."""
    state, result = model.state_dict(), {}
    for name, value in state.items():
        new = name.replace("audio_model.audio_encoder.", "audio_branch.").replace("text_model.", "text_branch.")
        for a, b in (
            ("batch_norm.", "bn0."),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("attention.output.dense", "attn.proj"),
            ("attention.self.relative", "attn.relative"),
            ("projection.linear1", "projection.0"),
            ("projection.linear2", "projection.2"),
        ):
            new = new.replace(a, b) if "audio_branch" in new or "projection" in new else new
        if "audio_branch" in new:
            new = new.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2")
        if new.endswith(("attention.self.query.weight", "attention.self.query.bias")) and "audio_branch" in new:
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            result[new.replace("attention.self.query", "attn.qkv")] = torch.cat(parts)
        elif not ("audio_branch" in new and "attention.self." in new):
            result[new] = value
    result["audio_branch.logmel_extractor.melW"] = torch.zeros(513, 64)
    result["audio_branch.tscam_conv.weight"] = torch.zeros(3)
    return result


def mel(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 1, 201, 16, generator=torch.Generator().manual_seed(0)) * 10 - 30


def test_laions_file_and_a_folder_give_the_same_features(tmp_path):
    model = tiny.clap()
    model.model.save_pretrained(tmp_path / "folder")
    model.tokenizer.save_pretrained(tmp_path / "folder")
    folder = clap.load(clap.Config(weights=str(tmp_path / "folder")))
    renamed = from_laion(laion_names(model.model), spec_size=64)
    with torch.no_grad():
        expected = model.encode_audio(mel())
        assert torch.allclose(folder.encode_audio(mel()), expected, atol=1e-6)
        assert torch.allclose(clap.Clap(renamed).encode_audio(mel()), expected, atol=1e-6)
    assert torch.allclose(folder.encode_texts(["cat", "a dog"]), model.encode_texts(["cat", "a dog"]), atol=1e-6)
    assert folder.provenance()["architecture"] == "HTSAT 2-2 x 8"


def test_a_file_that_is_no_clap_and_one_without_texts_are_refused(tmp_path):
    torch.save({"state_dict": {"module.a": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="but no CLAP"):
        clap.load(clap.Config(weights=str(tmp_path / "other.pt")))
    state = {n: v for n, v in laion_names(tiny.clap().model).items() if not n.startswith("text_")}
    with pytest.raises(WeightsError, match="text tower is missing"):
        from_laion(state, spec_size=64)


def test_fused_weights_run_without_their_fusion():
    fused = tiny.clap(enable_fusion=True, fusion_type="aff_2d")
    with torch.no_grad():
        expected = fused.model.audio_model.audio_encoder
        assert not expected.enable_fusion
        assert fused.encode_audio(mel()).shape == (2, 24)


def test_padding_texts_changes_nothing():
    model = tiny.clap()
    together, alone = model.encode_texts(["cat", "a very long dog"]), model.encode_texts(["cat"])
    assert torch.allclose(together[:1], alone, atol=1e-5)


def test_a_tone_of_one_kilohertz_lands_in_its_band():
    time = np.arange(32000) / 32000
    wave = torch.from_numpy(np.sin(2 * np.pi * 1000 * time).astype(np.float32))[None]
    front = FrontEnd()
    loud = front(wave, seconds=10.0)[0, 0]
    assert loud.shape == (1001, 64) and front.frames(10.0) == 1001
    band = int(loud.mean(0).argmax())
    filters = front.filters()
    assert int(filters[32].argmax()) == band  # 1000 Hz is bin 32 of 31.25 Hz each
    shifted = int(FrontEnd(reference_rate=48000)(wave, seconds=10.0)[0, 0].mean(0).argmax())
    assert shifted > band  # bin 32 is taken for 1500 Hz


def test_silence_is_a_hundred_decibels_down():
    assert torch.equal(FrontEnd()(torch.zeros(1, 32000), seconds=5.0), torch.full((1, 1, 501, 64), -100.0))


@pytest.mark.parametrize("hop", [320, 640])
@pytest.mark.parametrize(("samples", "length"), [(32000, 320000), (32000, 160000), (32000, 33000), (31000, 90000)])
def test_the_tiled_spectrogram_is_the_whole_one(samples, length, hop):
    wave = torch.randn(2, samples, generator=torch.Generator().manual_seed(1))
    repeated = wave.repeat(1, math.ceil(length / samples))[:, :length]
    window = torch.hann_window(1024)
    whole = torch.stft(repeated, 1024, hop, window=window, center=True, pad_mode="reflect", return_complex=True)
    tiled = tiled_power(wave, length, window=1024, hop=hop)
    expected = whole.abs().square().transpose(1, 2)
    assert tiled.shape == expected.shape
    assert torch.allclose(tiled, expected, rtol=1e-3, atol=1e-2)


def test_a_clip_longer_than_the_tower_takes_is_refused():
    with pytest.raises(DataError, match="a clip of 300 frames"):
        tiny.clap().patches(torch.zeros(1, 1, 300, 16))


def test_statistics_of_the_batch_leave_the_stored_ones_unless_told():
    model = tiny.clap()
    before = model.tower.batch_norm.running_mean.clone()
    with torch.no_grad():
        model.patches(mel(), batch_statistics=True)
        assert torch.equal(model.tower.batch_norm.running_mean, before)
        model.patches(mel(), batch_statistics=True, update=True)
    assert not torch.equal(model.tower.batch_norm.running_mean, before)


@pytest.mark.parametrize(
    "said",
    [
        {"feature_size": 128},
        {"fft_window_size": 512},
        {"sampling_rate": 16000},
        {"top_db": 80},
        {"padding": "pad"},
        {"chunk_length_s": 10},
    ],
    ids=lambda said: next(iter(said)),
)
def test_a_field_of_the_front_end_is_used_or_refused_by_name(said, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(WeightsError, match=next(iter(said))):
        preprocessor.front_end(tmp_path, mels=64)


def test_hugging_faces_own_front_end_is_the_default(tmp_path):
    ClapFeatureExtractor(frequency_min=50).save_pretrained(tmp_path)
    assert FrontEnd(**preprocessor.front_end(tmp_path, mels=64)) == FrontEnd()
