"""Loading a CLIP from every kind of file, its features, tokens and pixels, and what happens to wrong files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_clip import tiny_clip, tiny_model, tiny_tokenizer
from torch import nn

from perdure.errors import DataError, PerdureError, RecipeError, UnreadableExample, WeightsError
from perdure.models import clip, named_weights
from perdure.models.clip import source as clip_source
from perdure.models.clip.convert import from_openai, to_openai
from perdure.models.clip.tokens import clean, end_positions, openai_encoder
from perdure.models.clip.transform import ClipTransform
from perdure.settings import registry

TEXTS = ["a photo of a cat.", "dog", "cat dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder) -> clip.Clip:
    return clip.load(clip.Config(weights=str(folder)))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def openai_state() -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in to_openai(tiny_model()).items()}


class Named(nn.Module):
    """A module with given tensors under given dotted names, as OpenAI's archives have them."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            place: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(place, part):
                    place.add_module(part, nn.Module())
                place = getattr(place, part)
            if value.is_floating_point():
                place.register_parameter(last, nn.Parameter(value))
            else:
                place.register_buffer(last, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


# ---- features ------------------------------------------------------------------------------------------------------


def test_features_equal_those_of_hugging_face(folder, model, pixels):
    plain = type(model.model).from_pretrained(folder).eval()
    ids = model.tokenize(TEXTS)
    with torch.no_grad():
        out = plain(input_ids=ids, pixel_values=pixels)
        images = nn.functional.normalize(model.image_features(pixels), dim=1)
        texts = nn.functional.normalize(model.text_features(ids), dim=1)
    torch.testing.assert_close(model.scale * images @ texts.T, out.logits_per_image)
    assert model.dim == 24 and model.context_length == 12 and model.image_size == 16


def test_a_loaded_clip_is_frozen_and_in_evaluation_mode(model):
    assert not model.training and not model.model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_cutting_at_the_longest_text_does_not_change_features(model):
    ids = model.tokenize(TEXTS)
    kept = model.cut(ids)
    assert kept.shape[1] < ids.shape[1]
    assert (model.text_features(kept) - model.text_features(ids)).abs().max() <= 1e-6
    assert (model.encode_texts(TEXTS, batch_size=2) - model.text_features(ids)).abs().max() <= 1e-6


def test_token_embeddings_given_by_hand_give_the_same_features(model):
    ids = model.tokenize(TEXTS)
    given = model.text_features(ids, embeddings=model.token_embeddings(ids))
    torch.testing.assert_close(given, model.text_features(ids))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_both_attentions_agree(folder, model, pixels, attention):
    other = clip.load(clip.Config(weights=str(folder), attention=attention))
    assert other.provenance()["attention"] == other.vision_config._attn_implementation == attention
    assert other.text_config._attn_implementation == attention
    torch.testing.assert_close(other.image_features(pixels), model.image_features(pixels))
    ids = model.tokenize(TEXTS)
    given = other.text_features(ids, embeddings=other.token_embeddings(ids))
    torch.testing.assert_close(given, model.text_features(ids))


def test_float64_computes_in_float64_to_the_end(folder, model, pixels):
    exact = clip.load(clip.Config(weights=str(folder), dtype="float64"))
    features = exact.image_features(pixels)
    assert features.dtype == torch.float64 and exact.scale.dtype == torch.float64
    assert exact.encode_texts(TEXTS).dtype == torch.float64
    error = (features - model.image_features(pixels).double()).abs().max()
    assert 0 < error < 1e-5
    with pytest.raises(RecipeError, match="sdpa"):
        clip.load(clip.Config(weights=str(folder), dtype="float64", attention="eager"))


def test_bfloat16_stays_near_float32(folder, model, pixels):
    half = clip.load(clip.Config(weights=str(folder), dtype="bfloat16"))
    features = half.image_features(pixels)
    assert features.dtype == torch.bfloat16
    cosine = nn.functional.cosine_similarity(features.float(), model.image_features(pixels))
    assert cosine.min() > 0.999


def test_parameters_are_visual_or_textual_and_never_both(model):
    visual, textual = model.visual_parameters(), model.text_parameters()
    assert not visual.keys() & textual.keys()
    assert len(visual) + len(textual) == len(list(model.model.parameters()))
    assert "logit_scale" in textual and "visual_projection.weight" in visual


def test_no_texts_and_no_images_give_empty_features(model):
    assert model.encode_texts([]).shape == (0, 24)
    assert model.image_features(torch.empty(0, 3, 16, 16)).shape == (0, 24)


# ---- files ---------------------------------------------------------------------------------------------------------


def same_features(loaded: clip.Clip, expected: clip.Clip, pixels: torch.Tensor) -> None:
    ids = expected.tokenize(TEXTS)
    torch.testing.assert_close(loaded.image_features(pixels), expected.image_features(pixels))
    torch.testing.assert_close(loaded.text_features(ids), expected.text_features(ids))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_a_torchscript_archive_gives_the_features_of_the_folder(tmp_path, model, pixels):
    file = tmp_path / "ViT-tiny.pt"
    facts = {"input_resolution": 16, "context_length": 12, "vocab_size": model.text_config.vocab_size}
    state = openai_state() | {name: torch.tensor(value) for name, value in facts.items()}
    scripted = torch.jit.trace(Named(state), torch.zeros(1))
    scripted.save(str(file))
    loaded = clip.load(clip.Config(weights=str(file), heads=(2, 2)))
    same_features(loaded, model, pixels)
    assert loaded.provenance()["activation"] == "quick_gelu"
    assert loaded.weights_sha256.keys() == {"ViT-tiny.pt"}


@pytest.mark.parametrize("form", ["plain", "wrapped", "safetensors", "half"])
def test_a_state_dict_gives_the_features_of_the_folder(tmp_path, model, pixels, form):
    state, file = openai_state(), tmp_path / "weights.pt"
    if form == "safetensors":
        file = tmp_path / "weights.safetensors"
        save_file(state, file)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, file)
    else:
        torch.save({k: v.half() for k, v in state.items()} if form == "half" else state, file)
    loaded = clip.load(clip.Config(weights=str(file), heads=(2, 2), quick_gelu=True))
    assert loaded.dtype == torch.float32
    if form == "half":
        difference = loaded.image_features(pixels) - model.image_features(pixels)
        assert difference.abs().max() < 1e-2
    else:
        same_features(loaded, model, pixels)


def test_a_tokenizer_beside_the_file_is_used(tmp_path, model):
    torch.save(openai_state(), tmp_path / "weights.pt")
    config = clip.Config(weights=str(tmp_path / "weights.pt"), heads=(2, 2), quick_gelu=True)
    with pytest.raises(WeightsError, match=r"tokenizer\.json"):
        clip.load(config).tokenize(TEXTS)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert torch.equal(clip.load(config).tokenize(TEXTS), model.tokenize(TEXTS))


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_open_clip_weights_give_open_clip_features(tmp_path, quick_gelu):
    torch.manual_seed(3)
    theirs = open_clip.CLIP(
        embed_dim=20,
        vision_cfg={"image_size": 16, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
        text_cfg={"context_length": 10, "vocab_size": 30, "width": 32, "heads": 2, "layers": 3},
        quick_gelu=quick_gelu,
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    facts = {"model_cfg": {"quick_gelu": quick_gelu}, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(facts))
    ours = clip.load(clip.Config(weights=str(tmp_path), heads=(2, 2)))
    images, ids = torch.randn(2, 3, 16, 16), torch.tensor([[28, 3, 29, 0, 0], [28, 5, 6, 7, 29]])
    ids = nn.functional.pad(ids, (0, 5))
    with torch.no_grad():
        torch.testing.assert_close(ours.image_features(images), theirs.encode_image(images))
        torch.testing.assert_close(ours.text_features(ids), theirs.encode_text(ids))
    assert ours.transform.mean == (0.1, 0.2, 0.3)


def test_conversion_back_to_openai_names_loses_nothing():
    state = openai_state()
    again = to_openai(from_openai(state, heads=(2, 2)))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_an_embedded_name_is_found_in_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(named_weights, "EMBEDDED", tmp_path)
    tiny_clip(tmp_path / "micro-test")
    assert clip.load(clip.Config(weights="micro-test")).dim == 24


# ---- wrong files ---------------------------------------------------------------------------------------------------


def call(*_):
    print("this must never be printed")


class Dangerous:
    def __reduce__(self):
        return call, ()


def _code(path):
    path.write_bytes(pickle.dumps(Dangerous(), protocol=2))


def _code_in_torchscript(path):
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/constants.pkl", b"")
        archive.writestr("a/data.pkl", pickle.dumps(Dangerous(), protocol=2))


def _missing(path):
    state = openai_state()
    del state["ln_final.bias"]
    torch.save(state, path)


def _wrong_shape(path):
    state = openai_state()
    state["visual.ln_post.weight"] = torch.ones(7)
    torch.save(state, path)


def _unknown(path):
    torch.save(openai_state() | {"visual.extra": torch.ones(1)}, path)


def _resnet(path):
    torch.save({"visual.layer1.0.conv1.weight": torch.ones(4, 4, 1, 1)}, path)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_bytes(b"<html>not found</html>"), "cannot be read"),
        (lambda p: p.write_bytes(b"PK\x03\x04 cut"), "cannot be read"),
        (lambda p: torch.save([1, 2], p), "holds a list"),
        (lambda p: torch.save({"fc.weight": torch.ones(2)}, p), "no CLIP"),
        (_code, "cannot be read"),
        (_code_in_torchscript, f"asks for {__name__}.call"),
        (_missing, "1 tensors are missing"),
        (_wrong_shape, r"shape \[7\]"),
        (_unknown, "visual.extra"),
        (_resnet, "not a vision transformer"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, capfd, write, said):
    file = tmp_path / "wrong.pt"
    write(file)
    with pytest.raises(WeightsError, match=said) as caught:
        clip.load(clip.Config(weights=str(file), quick_gelu=True, heads=(2, 2)))
    assert "\n" not in str(caught.value) and "wrong.pt" in str(caught.value)
    assert "must never" not in capfd.readouterr().out


def test_a_bare_state_dict_must_be_told_its_activation(tmp_path):
    torch.save(openai_state(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="quick_gelu"):
        clip.load(clip.Config(weights=str(tmp_path / "w.pt"), heads=(2, 2)))


def _other_model(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


def _lacking_tensor(folder):
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    state.pop("text_projection.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _other_width(folder):
    facts = json.loads((folder / "config.json").read_text())
    facts["text_config"]["intermediate_size"] = 80
    (folder / "config.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_other_model, "'bert'"),
        (lambda f: (f / "config.json").write_text("{"), "this is no JSON"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "cannot be loaded"),
        (_lacking_tensor, "text_projection"),
        (_other_width, "fill the model|cannot be loaded"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer"),
    ],
)
def test_a_wrong_folder_is_refused_in_one_line(tmp_path, spoil, said):
    folder = tiny_clip(tmp_path / "model")
    spoil(folder)
    with pytest.raises(WeightsError, match=said) as caught:
        clip.load(clip.Config(weights=str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", ["./nothing", "nothing.pt", "no-such-model", "/tmp/no/such/folder"])
def test_a_name_that_is_nothing_is_refused(weights):
    with pytest.raises(WeightsError):
        clip.load(clip.Config(weights=weights))


def test_a_cached_hub_model_needs_no_network(monkeypatch, folder):
    asked = []

    def cached(repository, *, revision, local_files_only=False, **_):
        asked.append((repository, revision, local_files_only))
        return str(folder)

    monkeypatch.setattr(clip_source, "snapshot_download", cached)
    loaded = clip.load(clip.Config(weights="ViT-B/16", revision="abc"))
    assert asked == [("openai/clip-vit-base-patch16", "abc", True)]
    assert loaded.provenance()["revision"] == folder.name and loaded.provenance()["weights"] == "ViT-B/16"


def test_an_uncached_hub_model_says_what_to_type(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(clip_source, "snapshot_download", offline)
    with pytest.raises(WeightsError, match="hf download openai/clip-vit-base-patch16") as caught:
        clip.load(clip.Config(weights="ViT-B/16"))
    assert "\n" not in str(caught.value)


# ---- tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a cat.",
        "It's the dog's 2nd bone!! 12345",
        "naïve café — “quoted” ﬁne",
        "日本語 and العربية",
        "&lt;b&gt; &amp;amp; tab\there",
        "don'T WE'LL",
        "x" * 50,
        "",
        "emoji 😀👍",
        "great_white_shark",
        "\x1b[31mred\x1b[0m",
        "½ ² ① Ⅷ",
        "  spaced   out  ",
    ],
)
def test_ids_equal_those_of_openai(text):
    tokenizer = clip.Tokenizer(openai_encoder(), context_length=77)
    assert torch.equal(tokenizer([text]), open_clip.tokenizer.SimpleTokenizer()([text]))


def test_a_worked_row_of_ids():
    row = clip.Tokenizer(openai_encoder(), context_length=8)(["a cat"])[0]
    assert row.tolist() == [49406, 320, 2368, 49407, 0, 0, 0, 0]


def test_over_long_texts_raise_or_are_cut_and_counted():
    tokenizer = clip.Tokenizer(tiny_tokenizer(), context_length=4)
    with pytest.raises(DataError, match="5 tokens"):
        tokenizer(["cat dog cat"])
    cat, dog = tokenizer.words(["cat dog"])[0]
    end = tokenizer.eot
    assert tokenizer(["cat dog cat", "cat"], truncate="keep-eot").tolist() == [
        [tokenizer.sot, cat, dog, end],
        [tokenizer.sot, cat, end, 0],
    ]
    assert tokenizer(["cat dog cat"], truncate="drop-eot").tolist() == [[tokenizer.sot, cat, dog, cat]]
    assert tokenizer.cut_texts == 2


def test_the_end_is_the_first_end_token_else_the_largest_id():
    ids = torch.tensor([[8, 9, 9, 0], [8, 1, 2, 9], [5, 1, 7, 2]])
    assert end_positions(ids, eot=9).tolist() == [1, 3, 2]


def test_legacy_end_token_2_means_the_largest_id(tmp_path, model):
    folder = tiny_clip(tmp_path / "legacy")
    facts = json.loads((folder / "config.json").read_text())
    facts["text_config"] |= {"bos_token_id": 0, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(facts))
    legacy = clip.load(clip.Config(weights=str(folder)))
    ids = legacy.tokenize(TEXTS)
    plain = legacy.model.get_text_features(ids).pooler_output
    torch.testing.assert_close(legacy.text_features(ids), plain)
    torch.testing.assert_close(legacy.text_features(ids), model.text_features(ids))


def test_cleaning_resolves_entities_and_spaces():
    assert clean("  A &amp;amp; B\n c ") == "a & b c"


# ---- pixels --------------------------------------------------------------------------------------------------------


def test_preprocessing_equals_torchvision():
    from torchvision import transforms as tv

    theirs = tv.Compose(
        [
            tv.Resize(24, interpolation=tv.InterpolationMode.BICUBIC),
            tv.CenterCrop(24),
            tv.ToTensor(),
            tv.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    draw = np.random.default_rng(0)
    for height, width in [(40, 57), (63, 24), (24, 24), (10, 13), (200, 31)]:
        image = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        assert torch.equal(ClipTransform(size=24)(image), theirs(image))


def test_normalising_a_batch_of_pixels_equals_one_at_a_time():
    transform = pickle.loads(pickle.dumps(ClipTransform(size=8)))
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (12, 9, 3), dtype=np.uint8) for _ in range(3)]
    batch = transform.normalize(torch.stack([transform.pixels(i) for i in images]))
    assert torch.equal(batch, torch.stack([transform(i) for i in images]))


def test_gray_arrays_and_paths_are_images_too(tmp_path):
    gray = np.arange(100, dtype=np.uint8).reshape(10, 10)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    transform = ClipTransform(size=8)
    assert torch.equal(transform(gray), transform(tmp_path / "gray.png"))
    with pytest.raises(UnreadableExample):
        transform(tmp_path / "none.png")


def test_size_and_means_come_from_the_preprocessor_file(model):
    assert model.transform == ClipTransform(size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


UNLIKE = [{"resample": 1}, {"do_resize": False}, {"do_dither": True}, {"rescale_factor": 1}, {"do_center_crop": False}]


@pytest.mark.parametrize("facts", [*UNLIKE, {"crop_size": 99}, {"image_mean": [1]}, {"size": 3}])
def test_preprocessing_that_does_not_fit_is_refused(tmp_path, facts):
    folder = tiny_clip(tmp_path / "model")
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    with pytest.raises(PerdureError):
        clip.load(clip.Config(weights=str(folder)))


# ---- settings and provenance ---------------------------------------------------------------------------------------


def test_heads_are_a_list_in_yaml():
    from perdure.settings.config import parse

    assert parse(clip.Config, {"weights": "x.pt", "heads": [2, 4]}, where="clip").heads == (2, 4)


def test_settings_are_read_from_the_source_and_fields_are_documented():
    settings = registry.settings("models", "clip")
    assert settings(weights="x").dtype == "float32"
    assert set(registry.field_docs("models", "clip")) == set(settings.__dataclass_fields__)


def test_provenance_is_json_and_changes_with_the_weights(folder, model, tmp_path):
    facts = model.provenance()
    assert json.loads(json.dumps(facts)) == facts
    other = tiny_clip(tmp_path / "other", image_size=24)
    assert clip.load(clip.Config(weights=str(other))).weights_sha256 != model.weights_sha256


def test_settings_for_files_are_refused_with_a_folder(folder):
    with pytest.raises(RecipeError, match=r"config\.json"):
        clip.load(clip.Config(weights=str(folder), quick_gelu=False))
