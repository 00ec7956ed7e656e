"""micro-captioner as it is shipped: loads as any other captioner, speaks of what it is shown, and stays small."""

import numpy as np
import pytest
import torch

from perdure.data.microworld import scenes, styles, words
from perdure.families.captioning.speaking import captions_of
from perdure.families.clip.clipscore import unit
from perdure.models import captioner, clip
from perdure.models.clip.source import EMBEDDED

FOLDER = EMBEDDED / "micro-captioner"
SIZES = {"dim": 96, "prefix": 8, "clip_prefix": 4, "layers": 2, "heads": 4}


@pytest.fixture(scope="module")
def made():
    if not FOLDER.is_dir():
        pytest.skip("micro-captioner is not here: python tools/pretrain_micro.py micro-captioner")
    return captioner.load(captioner.Config(llm="micro-captioner", weights="micro-captioner", **SIZES))


def test_it_is_small_and_has_a_card(made):
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000
    card = (FOLDER / "README.md").read_text()
    assert "tools/pretrain_micro.py micro-captioner" in card and "minutes of processor time" in card
    assert made.room == 120 and made.device == torch.device("cpu")


def test_every_caption_of_the_world_is_words_that_it_knows_and_comes_back(made):
    said = words.captions(scenes.of_anything(0, "test", np.arange(50)))
    unknown = made.words.encoder.tokenizer.unk_token_id
    for text in (text for five in said for text in five):
        ids = made.words.ids([text])
        assert unknown not in ids[0]
        assert made.captions(ids)[0].replace(" - ", "-") == text  # a hyphen is a word of its own


def test_a_caption_ends_with_a_line_break(made):
    assert made.words.start == 2 and made.words.end == made.words.encoder.encode("\n")[0] == 4


@pytest.mark.slow
def test_its_captions_name_what_is_seen_more_often_than_those_of_other_pictures(made):
    world = scenes.of_anything(0, "test", np.arange(30), pairs=scenes.SEEN, shares=(1.0, 0.0, 0.0))
    policy = clip.load(clip.Config(weights="micro-clip"))
    shown = np.stack([policy.transform.pixels(image) for image in styles.pictures(world)])
    with torch.no_grad():
        features = unit(policy.image_features(policy.transform.normalize(torch.from_numpy(shown))))
    found = captions_of(made, features, decoding="official", beams=2, most=30)
    names = [world.objects(i)[0].shape for i in range(30)]
    said = [set(text.replace(".", "").split()) for text in found]
    hits = np.asarray([[bool(one & set(words.SYNONYMS.get(name, (name,)))) for name in names] for one in said])
    assert np.diag(hits).mean() > 0.5 > 2 * hits[~np.eye(30, dtype=bool)].mean()
