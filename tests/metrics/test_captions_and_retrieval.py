"""Metrics of captions and retrieval: numbers that can be followed by hand, and pycocoevalcap's own."""

import math
import os
import string

import numpy as np
import pytest

from perdure import metrics
from perdure.errors import DataError, MissingExtra, RecipeError, TrainingError
from perdure.metrics import caption_scores, caption_words, captioning, retrieval
from perdure.types import Example, Query


def ranked(scores, targets):
    table = np.asarray(scores, float)
    examples = [Example(id=str(i), inputs={}, target=t) for i, t in enumerate(targets)]
    query = Query(kind="retrieve", candidates=tuple(map(str, range(table.shape[1]))))
    return metrics.records("retrieve", table, examples, query)


def test_the_best_of_several_right_items_counts():
    rows = ranked([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]], [[0, 2], [2]])
    assert [r["rank"] for r in rows] == [1, 2] and rows[0]["top"] == [1, 2, 0]
    assert (retrieval.recall_1(rows), retrieval.recall_5(rows)) == (0.0, 100.0)
    assert retrieval.recall_mean(rows) == pytest.approx(200 / 3) and retrieval.median_rank(rows) == 2.5


def test_of_equal_scores_the_lower_index_comes_first():
    assert [r["rank"] for r in ranked([[1.0, 1.0, 1.0]] * 3, [[0], [1], [2]])] == [0, 1, 2]


def test_a_perfect_diagonal_is_100_percent_and_no_records_are_none():
    rows = ranked(np.eye(12), list(range(12)))
    assert all(metrics.compute(f"recall_{k}", rows) == 100 for k in (1, 5, 10, "mean"))
    assert retrieval.recall_1([]) is None and retrieval.recall_mean([]) is None


def test_a_score_that_is_no_number_is_an_error():
    with pytest.raises(TrainingError, match="query 1"):
        ranked([[1.0, 2.0], [float("nan"), 0.0]], [0, 1])


def test_bleu_by_hand():
    whole, each = caption_scores.bleu(["a b c d"], [["a b x d", "a"]])
    # three of four words, one of three pairs; the closest reference is as long
    assert whole[0] == pytest.approx(3 / 4) and whole[1] == pytest.approx(math.sqrt(3 / 4 * 1 / 3))
    assert each[0] == pytest.approx([3 / 4])
    short, _ = caption_scores.bleu(["a b"], [["a b c d"]])
    assert short[0] == pytest.approx(math.exp(1 - 2))


def test_rouge_by_hand():
    # the longest common subsequence of "a c d" and "a b c d" has 3 words: P 1, R 3/4
    assert caption_scores.rouge_l(["a c d"], [["a b c d"]])[0] == pytest.approx(2.44 * 0.75 / (0.75 + 1.44))
    assert caption_scores.rouge_l(["x"], [["a b"]]) == [0.0]


def test_cider_of_the_reference_itself_is_10_where_no_other_image_says_so():
    assert caption_scores.cider_d(["a b c d", "e f g h"], [["a b c d"], ["e f g h"]]) == pytest.approx([10.0, 10.0])
    assert caption_scores.cider_d(["x y"], [["x y"]]) == [0.0]  # a single document: no word is rare


def test_clipscore_by_hand():
    image, caption = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8]])
    score, both = caption_scores.clip_scores(image, caption, np.array([[0.0, 1.0], [1.0, 0.0]]), [0, 0])
    assert score == pytest.approx([1.5]) and both == pytest.approx([2 * 1.5 * 0.8 / 2.3])
    score, both = caption_scores.clip_scores(image, -image, -image[:, ::-1] * 0 + np.array([[0.0, 1.0]]), [0])
    assert score == [0.0] and both == [0.0]


SENTENCES = [
    "a man's dog isn't here", "two cats, next to each other!", "a 3.5 inch well-known ball (red)", "I can't see them",
    'a sign says "stop"', "a cat -- a dog", "mr. smith's u.s. flag", "it's 10:30; we've gone...", "black & white",
]  # fmt: skip


def test_the_fallback_splits_captions_by_hand():
    expected = ["a man 's dog is n't here", "two cats next to each other", "a 3.5 inch well-known ball -lrb- red -rrb-"]
    assert [caption_words.fallback(text) for text in SENTENCES[:3]] == expected
    assert caption_words.fallback("I cannot") == "i can not" and caption_words.fallback("") == ""


def test_the_fallback_writes_brackets_out_and_drops_quotes_and_sentence_marks():
    text = "A man (left) and [right] with {both}: “yes” – it's £5 or ½ — no. 5…"
    expected = "a man -lrb- left -rrb- and -lsb- right -rsb- with -lcb- both -rcb- yes it 's # 5 or 1/2 no. 5"
    assert caption_words.fallback(text) == expected
    assert caption_words.fallback("AT&T, black&white") == "at&t black & white"


MARKS = [*string.punctuation, *"“”‘’–—…€£¥©®°½¼¾é", "...", "--", "''", "``"]
AROUND = ("a dog {} a cat", "a dog{} a cat", "a dog {}cat", "the dog{}cat ran", "the end{}", "{} start", "two {}{} men")
PHRASES = [
    "mr. smith of the u.s. army", "don't can't I'm dog's dogs' o'clock '90s rock'n'roll", "a_b x=y c++ 7-eleven 3d tv",
    "foo@bar.com and http://a.b/c", "a <b> tag", "no. 5, no.", "e.g. this i.e. that etc. and so", "at 3:30 for 1,000",
    "stairs.] with a tie", "half-eaten 1/2 pizza", "they've we'd you're cannot gonna", "t-shirt/jeans AT&T",
]  # fmt: skip


@pytest.mark.slow
def test_the_fallback_equals_stanfords_tokenizer_on_every_mark_and_on_common_sentences():
    if caption_words.default_tokenizer() != "ptb":
        pytest.skip("Stanford's tokenizer needs pycocoevalcap and Java")
    texts = [*SENTENCES, *PHRASES, *(around.replace("{}", mark) for mark in MARKS for around in AROUND)]
    theirs, ours = (caption_words.tokenize(texts, tokenizer) for tokenizer in ("ptb", "fallback"))
    assert [row for row in zip(texts, theirs, ours) if row[1] != row[2]] == []


def test_scores_equal_pycocoevalcaps():
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    draw = np.random.default_rng(0)
    words = ["a", "the", "cat", "dog", "sits", "on", "mat", "red", "ball", "two"]

    def sentence():
        return " ".join(draw.choice(words, draw.integers(1, 9)))

    made = [sentence() for _ in range(40)]
    said = [[sentence() for _ in range(draw.integers(1, 6))] for _ in made]
    truth, results = dict(enumerate(said)), {i: [c] for i, c in enumerate(made)}
    assert caption_scores.bleu(made, said)[0] == pytest.approx(Bleu(4).compute_score(truth, results, verbose=0)[0])
    ours, theirs = caption_scores.rouge_l(made, said), Rouge().compute_score(truth, results)
    assert np.mean(ours) == pytest.approx(theirs[0])
    ours, theirs = caption_scores.cider_d(made, said), Cider().compute_score(truth, results)
    assert ours == pytest.approx(theirs[1].tolist())


def rows(**more):
    return [{"id": "1.jpg", "image_id": 1, "caption": "A cat.", "references": ["a cat", "the cat"], **more}]


def test_records_are_entries_of_a_coco_results_file():
    examples = [
        Example(id="a.jpg", inputs={"image_id": 391895}, target=["x"]),
        Example(id="photo 7.jpg", inputs={}, target=["x"]),
    ]
    found = metrics.records("caption", ["a cat", "a dog"], examples, Query(kind="caption"))
    assert captioning.coco_results(found) == [
        {"image_id": 391895, "caption": "a cat"},
        {"image_id": "photo 7.jpg", "caption": "a dog"},
    ]


def test_java_absent_is_said_and_the_fallback_is_labelled(monkeypatch):
    monkeypatch.setattr(caption_words, "has_java", lambda: False)
    with pytest.raises(MissingExtra, match="METEOR needs Java"):
        metrics.compute("meteor", rows())
    with pytest.raises(MissingExtra, match="SPICE needs Java"):
        metrics.compute("spice", rows())
    table = metrics.compute("caption_scores", rows())
    assert table["ptb_tokenizer"] == 0.0 and "meteor" not in table and table["bleu_1"] == pytest.approx(100)


needs_java = pytest.mark.skipif(caption_words.default_tokenizer() != "ptb", reason="needs pycocoevalcap and Java")


@needs_java
@pytest.mark.slow
def test_meteor_reads_numbers_in_any_locale(monkeypatch):
    expected = metrics.compute("meteor", rows())
    assert expected == pytest.approx(100)
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    monkeypatch.setenv("_JAVA_OPTIONS", "-Duser.language=tr -Duser.country=TR")
    assert metrics.compute("meteor", rows()) == expected
    assert caption_words.tokenize(["AN IGLOO IS"], "ptb") == ["an igloo is"]


@needs_java
@pytest.mark.slow
def test_an_empty_caption_has_no_words():
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.meteor.meteor import Meteor

    records = [
        {"id": "a", "image_id": 1, "caption": "", "references": ["a bird", "a small bird sings"]},
        {"id": "b", "image_id": 2, "caption": "two men on a bench", "references": ["two men sit on a bench"]},
    ]
    truth, made = {r["id"]: r["references"] for r in records}, {r["id"]: [r["caption"]] for r in records}
    table = metrics.compute("caption_scores", records)
    expected = Bleu(4).compute_score(truth, made, verbose=0)[0]
    assert [table[f"bleu_{k}"] / 100 for k in (1, 2, 3)] == pytest.approx(expected[:3])
    assert table["meteor"] / 100 == pytest.approx(Meteor().compute_score(truth, made)[0])


def test_a_java_program_that_never_answers_is_ended_and_named(tmp_path, monkeypatch):
    (tmp_path / "java").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(caption_words, "SECONDS", 0.1)
    with pytest.raises(DataError, match="METEOR gave no answer within"):
        caption_words.meteor(["a cat"], [["a cat"]])


def test_a_java_program_that_fails_is_named_with_its_last_words(tmp_path, monkeypatch):
    (tmp_path / "java").write_text("#!/bin/sh\necho at main >&2\necho no memory >&2\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(DataError, match=r"METEOR failed \(no memory\)"):
        caption_words.meteor(["a cat"], [["a cat"]])
    with pytest.raises(DataError, match=r"Stanford's tokenizer failed \(no memory\)"):
        caption_words.tokenize(["a cat"], "ptb")


def test_a_single_image_has_no_cider_for_all_its_words_are_in_every_document():
    assert metrics.compute("cider", rows()) is None
    assert metrics.compute("caption_scores", rows())["cider"] is None
    assert metrics.compute("cider", [*rows(), *rows(references=["two dogs"])]) > 0


def test_corenlp_absent_is_said():
    pytest.importorskip("pycocoevalcap")
    if not caption_words.has_java():
        pytest.skip("no Java")
    with pytest.raises(MissingExtra, match=r"stanford-corenlp-3\.6\.0\.jar"):
        metrics.compute("spice", rows())


def test_missing_references_and_scores_are_said():
    with pytest.raises(DataError, match="no reference caption"):
        captioning.cider([{**rows()[0], "references": []}])
    with pytest.raises(DataError, match="perdure prepare clipscore"):
        metrics.compute("clipscore", rows())
    assert metrics.compute("clipscore", rows(clipscore=0.5)) == 50
    with pytest.raises(RecipeError, match="Did you mean"):
        metrics.metric("cidr")
