"""Figures of single clips: lanes of events, masks on frames, questions; and what is said where pictures are gone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perdure.reporting import clips, html, load, tables

AVE = {
    "id": "a",
    "kind": "localize-events",
    "target": [28, 0, 0, 28],
    "prediction": [28, 0, 2, 2],
    "names": {"0": "Bark", "2": "Bell", "28": "background"},
}
LLP = {
    "id": "b",
    "kind": "parse-video",
    "prediction": 0,
    "labels": [0],
    "classes": 2,
    "segments": 4,
    "names": {"0": "Speech", "1": "Dog"},
    "true": {"audio": [[0, 0, 2]], "visual": [[0, 1, 4]]},
    "predicted": {"audio": [[0, 0, 4]], "visual": [[1, 3, 4]]},
}
AVS = {"id": "c", "kind": "segment", "iou": [0.5], "size": [2, 2], "target": [[0, 2, 2]], "prediction": [[1, 1, 2]]}
AVQA = {"id": "d", "kind": "answer", "prediction": "two", "target": "one", "question": "How many $ are there?"}


def run(folder: Path, records: dict[str, list[dict]], *, frames: bool = True) -> list[tables.Group]:
    """A run's folder with the records of one test of each task, and a report's groups of it."""
    (folder / "predictions").mkdir(parents=True)
    for index, rows in enumerate(records.values()):
        for row in rows:
            paths = [folder / f"{row['id']}_{second}.png" for second in range(4)]
            for path in paths if frames else []:
                Image.new("RGB", (8, 6), (200, 30, 30)).save(path)
            row["frames"] = [str(path) for path in paths]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "predictions" / f"{len(records) - 1}_{index}.jsonl").write_text(lines)
    last = len(records) - 1
    scores = [{"after": t, "asked": t, "n": 1, "values": {"score": 50.0}} for t in range(last)]
    scores += [{"after": last, "asked": t, "n": 1, "values": {"score": 40.0}} for t in range(last + 1)]
    (folder / "scores.json").write_text(json.dumps({"tasks": list(records), "headline": "score", "rows": scores}))
    return tables.groups([load.read(folder)])


def test_localized_events_have_a_lane_a_class_and_none_for_background():
    assert clips.lanes_of(AVE) == [("Bark", 0, [(1, 3)], [(1, 2)]), ("Bell", 2, [], [(2, 4)])]


def test_parsed_videos_have_lanes_of_what_is_heard_seen_and_both():
    assert clips.lanes_of(LLP) == [
        ("Speech, heard", 0, [(0, 2)], [(0, 4)]),
        ("Speech, seen", 0, [(1, 4)], []),
        ("Dog, seen", 1, [], [(3, 4)]),
        ("Speech, both", 0, [(1, 2)], []),
    ]


def test_the_best_the_middle_and_the_worst_clip_are_shown():
    rows = [{"id": str(i), "value": i} for i in range(9)]
    assert [row["id"] for row in clips.spread(rows, lambda row: row["value"])] == ["8", "4", "0"]
    assert [row["id"] for row in clips.spread(rows[:2], lambda row: 0.0)] == ["0", "1"]


def test_run_lengths_become_a_mask_of_the_pictures_size():
    mask = clips.mask_of([1, 2, 1], [2, 2], np.zeros((4, 4, 3)))
    assert mask.astype(int).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    frame = np.full((4, 4, 3), 100, dtype=np.uint8)
    painted = clips.painted(frame, mask, "#FF0000")
    assert painted[0, 3].tolist() == [200, 35, 35] and painted[0, 0].tolist() == [110, 110, 110]
    assert clips.painted(frame, None, "#FF0000") is frame


def test_every_kind_of_clip_is_on_the_page(tmp_path):
    page = html.html(run(tmp_path, {"AVE": [AVE], "LLP": [LLP], "AVS": [AVS], "AVQA": [AVQA]}))
    assert [page.count(f'id="clips-{i}"') for i in range(1, 6)] == [1, 1, 1, 1, 0]
    assert page.count("data:image/jpeg;base64") == 4 + 4 + 3 + 1
    assert "The only clip by this task" in page and "“two”; the truth is “one”" in page
    assert "Bark" in page and "Dog, seen" in page and "prediction, IoU 50 %" in page
    assert page == html.html(tables.groups([load.read(tmp_path)]))  # the same bytes again


def test_pictures_that_are_gone_leave_one_line_and_no_figure(tmp_path):
    groups = run(tmp_path, {"AVE": [AVE], "AVQA": [AVQA]}, frames=False)
    figures, remarks = clips.clip_figures(groups)
    assert figures == [] and len(remarks) == 2
    page = html.html(groups)
    assert "Clips of AVE are not drawn: a (" in page and "there is no such file" in page and 'id="clips-1"' not in page


def test_records_without_frames_are_drawn_without_pictures_where_none_are_needed(tmp_path):
    groups = run(tmp_path, {"LLP": [LLP], "AVS": [AVS]})
    for file in (tmp_path / "predictions").iterdir():
        row = json.loads(file.read_text())
        del row["frames"]
        file.write_text(json.dumps(row) + "\n")
    figures, remarks = clips.clip_figures(groups)
    assert [figure.key for figure in figures] == ["clips-1"] and "image" not in figures[0].svg
    assert remarks == ["Clips of AVS are not drawn: c: the records do not say where its frames are"]


def test_runs_of_other_kinds_and_comparisons_have_no_clips(tmp_path):
    groups = run(tmp_path, {"digits": [{"id": "x", "predicted": 1, "target": 1}]})
    assert clips.clip_figures(groups) == ([], []) == clips.clip_figures([*groups, *groups])


def test_the_normalized_mean_stands_in_the_score_table(tmp_path):
    (group,) = run(tmp_path, {"AVE": [AVE], "LLP": [LLP]})
    titles = {number.title: one.mean for number, one in group.summaries.items()}
    assert titles["normalized mean score"] == pytest.approx((100 * 40 / 50 + 100) / 2)
