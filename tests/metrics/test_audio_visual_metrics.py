"""Metrics of audio-visual tasks on numbers that can be followed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from perdure import metrics
from perdure.errors import DataError
from perdure.families.audio_visual import losses
from perdure.metrics import continual, masks, parsing
from perdure.types import Example, Query


def maps(*runs: tuple[int, int], classes: int = 2) -> dict[str, np.ndarray]:
    """Events of class 0 in the sound, none in the picture."""
    audio = np.zeros((classes, 10), dtype=bool)
    for begin, end in runs:
        audio[0, begin:end] = True
    return {"audio": audio, "visual": np.zeros_like(audio)}


def test_two_events_that_are_heard_as_one():
    truth, predicted = maps((0, 4), (5, 9)), maps((0, 9))
    assert parsing.segment_scores(predicted, truth)["A"] == pytest.approx(16 / 17)  # 8 hits, 1 false alarm
    counts = parsing.event_counts(predicted["audio"], truth["audio"])[:, 0]
    assert counts.tolist() == [0, 1, 2]  # IoU 4/9 with either
    assert parsing.event_scores(predicted, truth)["A"] == 0


def test_nothing_there_and_nothing_found_is_right_and_a_false_alarm_is_wrong():
    for scores in (parsing.segment_scores, parsing.event_scores):
        assert set(scores(maps(), maps()).values()) == {1.0}
        assert scores(maps((0, 3)), maps())["A"] == 0
        assert scores(maps((0, 3)), maps())["V"] == 1


def test_runs_of_a_row():
    assert parsing.runs(np.array([1, 1, 0, 1, 0, 0, 1], dtype=bool)) == [(0, 2), (3, 4), (6, 7)]
    assert parsing.runs(np.zeros(4, dtype=bool)) == []


def test_iou_of_masks_and_of_frames_without_truth():
    truth = torch.zeros(3, 2, 4, dtype=torch.bool)
    truth[0, 0, :4] = True  # 4 pixels
    logits = torch.full((3, 2, 4), -1.0)
    logits[0, 0, :2] = 1  # 2 of them
    logits[2] = 1  # all foreground, nothing true
    assert masks.frame_iou(logits, truth).tolist() == pytest.approx([0.5, 1, 0], abs=1e-6)


def test_f_score_of_a_perfect_and_of_an_empty_frame():
    truth = torch.zeros(2, 2, 2, dtype=torch.bool)
    truth[0, 0] = True
    logits = torch.where(truth, 9.0, -9.0)
    assert masks.best_f_score(logits, truth) == pytest.approx(1.0)
    assert masks.best_f_score(logits, torch.zeros_like(truth)) == 0


def test_a_video_level_label_costs_as_many_logarithms_as_it_has_classes():
    scores = torch.zeros(1, 10, 25)
    labels = torch.zeros(1, 25)
    labels[0, [3, 7]] = 1
    event = losses.parsing_loss(scores, labels)
    assert event.item() == pytest.approx(2 * np.log(25), abs=1e-4)  # 6.4378
    alone = torch.tensor([[3.0]])
    assert losses.event_loss(event, alone, alone).item() == pytest.approx(5 * 6.43775, abs=1e-3)


def query(kind: str, *names: str, offset: int = 0) -> Query:
    return Query(kind=kind, candidates=names, offset=offset)  # type: ignore[arg-type]


def test_records_of_events_and_their_accuracy():
    scores = torch.tensor([[[3.0, 1, 0], [0, 2, 1], [0, 0, 1]]])
    rows = metrics.records(
        "localize-events",
        scores,
        [Example(id="a", inputs={}, target=[0, 1, 0])],
        query("localize-events", "x", "y", "z"),
    )
    assert rows[0]["prediction"] == [0, 1, 2] and rows[0]["target"] == [0, 1, 0]
    assert rows[0]["names"] == {"0": "x", "1": "y", "2": "z"} and "frames" not in rows[0]
    assert metrics.compute("segment_accuracy", rows) == pytest.approx(200 / 3)
    assert metrics.compute("score", rows) == metrics.compute("score_official", rows)


def test_records_of_parsed_videos():
    scores = torch.zeros(1, 4, 2)
    scores[0, :, 1] = 1
    present = torch.zeros(1, 4, 2)
    present[0, :2, 1] = 1
    target = {"labels": [0, 1], "audio": [[1, 0, 2]], "visual": []}
    predictions = {"scores": scores, "audio": present, "visual": torch.zeros_like(present)}
    rows = metrics.records(
        "parse-video", predictions, [Example(id="a", inputs={}, target=target)], query("parse-video", "x", "y")
    )
    assert rows[0]["predicted"] == {"audio": [[1, 0, 2]], "visual": []}
    table = metrics.compute("segment_f1", rows)
    assert table == {"A": 100, "V": 100, "AV": 100, "Event@AV": 100, "Type@AV": 100}
    assert metrics.compute("llp_top1_official", rows) == 0  # class 1 is best, class 0 is the lowest true one
    assert metrics.compute("score", rows) == 100 and metrics.compute("score_official", rows) == 0


def test_records_of_masks_hold_no_pixels_but_runs():
    logits = torch.full((1, 1, 2, 2), -1.0)
    logits[0, 0, 0] = 1
    mask = np.array([[1, 1], [0, 0]], dtype=np.uint8) * 255
    rows = metrics.records("segment", logits, [Example(id="a", inputs={}, target=[mask])], query("segment"))
    assert rows[0]["prediction"] == rows[0]["target"] == [[0, 2, 2]]
    assert metrics.compute("mask_iou", rows) == pytest.approx(100, abs=1e-4)
    assert metrics.compute("mask_f_score", rows) == pytest.approx(100)


def test_a_mask_of_another_size_is_refused():
    example = Example(id="clip 7", inputs={}, target=[np.zeros((3, 3), dtype=np.uint8)])
    with pytest.raises(DataError, match=r"clip 7: its masks are 3x3"):
        metrics.records("segment", torch.zeros(1, 1, 2, 2), [example], query("segment"))


def test_types_of_questions_and_what_was_not_asked():
    kinds = [("Audio", "Counting"), ("Audio", "Counting"), ("Visual", "Location")]
    examples = [
        Example(id=str(i), inputs={}, target={"answer": i % 2, "type": list(kind)}) for i, kind in enumerate(kinds)
    ]
    scores = torch.tensor([[1.0, 0], [1, 0], [1, 0]])
    rows = metrics.records("answer", scores, examples, query("answer", "yes", "no"))
    table = metrics.compute("avqa_by_type", rows)
    assert (table["Audio Counting"], table["Audio"], table["Visual Location"]) == (50, 50, 100)
    assert table["Audio-Visual Temporal"] is None and table["Audio-Visual"] is None
    assert metrics.compute("avqa_accuracy", rows) == pytest.approx(200 / 3)


def test_the_normalized_mean_mixes_no_units():
    matrix = [[0.8, None, None], [0.7, 0.6, None], [0.75, 0.5, 0.9]]
    assert continual.normalized_mean(matrix) == pytest.approx((75 / 0.8 + 50 / 0.6 + 100) / 3)
    assert continual.normalized_mean([[0.0]]) is None  # what scored 0 has nothing to keep


def test_records_name_classes_frames_and_questions():
    frames = [Path("frames/a/00000001.jpg"), Path("frames/a/00000002.jpg")]
    target = {"labels": [4], "audio": [[4, 0, 1]], "visual": []}
    example = Example(id="a", inputs={"frames": frames}, target=target)
    present = {m: torch.zeros(1, 2, 2) for m in ("audio", "visual")}
    asked = query("parse-video", "x", "y", offset=3)
    (row,) = metrics.records("parse-video", {"scores": torch.zeros(1, 2, 2), **present}, [example], asked)
    assert row["true"]["audio"] == [[1, 0, 1]] and row["names"] == {"1": "y"}
    assert row["frames"] == ["frames/a/00000001.jpg", "frames/a/00000002.jpg"]
    question = Example(id="q", inputs={"question_text": "Is it loud?"}, target={"answer": 0, "type": ["Audio", "x"]})
    (row,) = metrics.records("answer", torch.eye(2)[:1], [question], query("answer", "yes", "no"))
    assert (row["question"], row["prediction"], row["target"]) == ("Is it loud?", "yes", "yes")
