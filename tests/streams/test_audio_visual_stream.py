"""Streams of audio-visual tasks: order, names, limits, and what the method is told."""

from __future__ import annotations

import av_files
import pytest

from perdure.errors import RecipeError
from perdure.settings.config import Named
from perdure.streams import audio_visual


@pytest.fixture
def data(tmp_path) -> tuple[Named, ...]:
    av_files.ave(tmp_path / "ave")
    av_files.llp(tmp_path / "llp")
    av_files.music_avqa(tmp_path / "avqa")
    av_files.avs_s4(tmp_path / "avs")
    names = {"ave": "ave", "llp": "llp", "music_avqa": "avqa", "avs_s4": "avs"}
    extra = {"avs_s4": {"size": 16}}
    return tuple(
        Named(place="data", name=name, settings={"root": tmp_path / folder} | extra.get(name, {}))
        for name, folder in names.items()
    )


def test_tasks_come_in_any_order_and_the_query_names_them(data):
    stream = audio_visual.build(audio_visual.Config(data=data, order=("AVQA", "AVE", "AVS")))
    assert [(task.name, task.kind) for task in stream] == [
        ("AVQA", "answer"),
        ("AVE", "localize-events"),
        ("AVS", "segment"),
    ]
    assert [task.index for task in stream] == [0, 1, 2]
    query = stream.query(stream.tasks[1], after=2)
    assert query.task == "AVE" and len(query.candidates) == 29
    assert stream.tasks[2].facts == {"segments": 5, "clip_seconds": 5.0, "mask_size": 16}
    assert len(stream.tasks[0].facts["vocabulary"]) == 93
    assert all(task.metrics[0] == "score" for task in stream)


def test_official_scores_and_limits(data):
    config = audio_visual.Config(data=data, official_scores=True, train_per_task=1, test_per_task=1)
    stream = audio_visual.build(config)
    assert all(task.metrics[0] == "score_official" for task in stream)
    assert all(len(task.train) == len(task.test) == 1 for task in stream)
    again = audio_visual.build(config)
    assert [t.train[0].id for t in again] == [t.train[0].id for t in stream]


def test_an_order_that_names_no_task_is_refused(data):
    with pytest.raises(RecipeError, match="`AVVP` is no task"):
        audio_visual.build(audio_visual.Config(data=data, order=("AVVP",)))
