"""The cache of what the frozen front ends make: the same results, entries that are whole, space that is limited."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import av_files
import numpy as np
import pytest
import tiny_audio_visual as tiny
import torch

from perdure.data import ave
from perdure.errors import RecipeError, UnreadableExample
from perdure.evaluate import Evaluation
from perdure.families.audio_visual import front_ends
from perdure.families.audio_visual.front_end_cache import FrontEndCache
from perdure.families.audio_visual.front_ends import embed
from perdure.families.audio_visual.inputs import IMAGENET, Problem, pixels_of, problem_of
from perdure.families.audio_visual.system import System
from perdure.loop import run
from perdure.methods.av_joint import AvJoint
from perdure.methods.php import Config, Php
from perdure.models.clap import FrontEnd
from perdure.runtime import Runtime


def system(folder: Path | None, *, gigabytes: float = 1.0, **changes) -> System:
    made = System(clip=tiny.clip(), clap=tiny.clap(), cache_gigabytes=gigabytes, cache_folder=folder, **changes)
    if made.cache is not None:
        made.cache.open(None)
    return made


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def inputs(one: System, *examples) -> tuple[torch.Tensor, torch.Tensor]:
    batch = front_ends.collate([front_ends.preprocess(one, example, True) for example in examples])
    return embed(one, problem_of(tiny.task("localize-events", 0)), batch)[:2]


def test_a_video_is_made_once_and_read_afterwards(tmp_path):
    task, one = tiny.task("localize-events", 0), system(tmp_path)
    made = inputs(one, *task.train)
    assert len(entries(tmp_path)) == 4
    batch = front_ends.preprocess(one, task.train[0], True)
    assert "frames" not in batch and batch["tokens"].dtype == batch["mel"].dtype == torch.float16
    read = inputs(one, *task.train)
    assert all(torch.equal(a, b) for a, b in zip(made, read))


def test_entries_differ_from_what_is_not_cached_by_rounding_only(tmp_path):
    task = tiny.task("localize-events", 0)
    cached, plain = inputs(system(tmp_path), *task.train), inputs(system(None, gigabytes=0.0), *task.train)
    for a, b in zip(cached, plain):
        assert 0 < (a - b).abs().max() < 2e-3 * b.abs().max()


def test_a_batch_may_hold_videos_with_and_without_an_entry(tmp_path):
    task, one = tiny.task("localize-events", 0), system(tmp_path)
    inputs(one, task.train[1], task.train[2])
    mixed = inputs(one, *task.train)
    alone = [inputs(one, example) for example in task.train]
    for whole, parts in zip(mixed, zip(*alone)):
        torch.testing.assert_close(whole, torch.cat(parts))


def test_entries_are_the_same_in_bfloat16(tmp_path):
    one, examples = system(tmp_path), tiny.task("localize-events", 0).train[:2]
    for read in (False, True):
        batch = front_ends.collate([front_ends.preprocess(one, example, True) for example in examples])
        assert ("tokens" in batch) == read
        with torch.autocast("cpu", torch.bfloat16):
            whole = front_ends.resolve(one, batch)
        assert whole["tokens"].dtype == whole["mel"].dtype == torch.float16


def test_a_damaged_entry_is_made_again(tmp_path):
    task, one = tiny.task("localize-events", 0), system(tmp_path)
    before = inputs(one, task.train[0])
    (file,) = entries(tmp_path)
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[:-2] + bytes([whole[-2] ^ 1, whole[-1]])):
        file.write_bytes(damaged)
        assert "frames" in front_ends.preprocess(one, task.train[0], True)
        assert all(torch.equal(a, b) for a, b in zip(before, inputs(one, task.train[0])))
        assert "tokens" in front_ends.preprocess(one, task.train[0], True)


def test_a_killed_writer_leaves_no_entry(tmp_path, monkeypatch):
    task, one = tiny.task("localize-events", 0), system(tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        inputs(one, task.train[0])
    assert not entries(tmp_path) and "frames" in front_ends.preprocess(one, task.train[0], True)


def test_what_no_longer_fits_is_made_anew_each_time(tmp_path):
    task = tiny.task("localize-events", 0)
    inputs(system(tmp_path / "one"), task.train[0])
    size = entries(tmp_path / "one")[0].stat().st_size
    small = system(tmp_path / "small", gigabytes=2.5 * size / 1e9)
    expected, found = inputs(system(tmp_path / "large"), *task.train), inputs(small, *task.train)
    assert len(entries(tmp_path / "small")) == 2
    assert all(torch.equal(a, b) for a, b in zip(expected, found))
    assert small.cache is not None
    small.cache.open(None)
    inputs(small, *task.train)
    assert len(entries(tmp_path / "small")) == 2 and small.cache.used <= small.cache.limit
    assert small.cache.counts == {"read": 2, "made": 2, "written": 0}


def test_another_front_end_or_another_file_has_another_key(tmp_path):
    task, one = tiny.task("localize-events", 0), system(tmp_path)
    other = System(clip=tiny.clip(), clap=tiny.clap(), cache_gigabytes=1.0, pixel_statistics="clip")
    clap = tiny.clap()
    clap.front = replace(clap.front, reference_rate=48_000)
    heard = System(clip=tiny.clip(), clap=clap, cache_gigabytes=1.0)
    keys = {s.cache.key(task.train[0]) for s in (one, other, heard) if s.cache is not None}
    assert len(keys) == 3
    data = ave.read(ave.Config(root=av_files.ave(tmp_path / "AVE")))
    assert one.cache is not None
    before = one.cache.key(data.train[0])
    assert before == one.cache.key(data.train[0]) != one.cache.key(data.train[1])
    wave = data.train[0].inputs["wave"]
    np.save(wave, np.load(wave)[::-1])
    os.utime(wave, ns=(1, 1))
    assert one.cache.key(data.train[0]) != before
    wave.unlink()
    assert one.cache.key(data.train[0]) is None
    with pytest.raises(UnreadableExample, match="no such file"):
        front_ends.preprocess(one, data.train[0], True)


def test_a_second_says_all_of_a_clip_of_any_length():
    wave = torch.randn(2, 32_000, generator=torch.Generator().manual_seed(0))
    for front in (FrontEnd(), FrontEnd(mels=16, hop=640), FrontEnd(longest=1.28), FrontEnd(hop=333)):
        period = front.period(wave)
        for seconds in (2, 5, 10):
            if front.can_repeat(seconds):
                torch.testing.assert_close(
                    front.repeated(period, seconds=seconds), front(wave, seconds=seconds), atol=2e-3, rtol=0
                )
    assert FrontEnd().period(wave).shape == (2, 104, 64)
    assert FrontEnd().can_repeat(5) and not FrontEnd().can_repeat(2.5) and not FrontEnd(longest=1.5).can_repeat(1)


def test_clips_that_a_second_cannot_make_are_refused():
    problem = Problem(name="odd", kind="localize-events", candidates=("a",), clip_seconds=2.5)
    with pytest.raises(RecipeError, match=r"task 'odd': seconds of sound are repeated to 2\.5 s"):
        front_ends.check_seconds(tiny.clap(), problem)


def scores_of(out: Path, **settings) -> list[dict]:
    method = Php(Config(**tiny.SETTINGS | {"epochs": 2} | settings), clip=tiny.clip(), audio=tiny.clap())
    stream = tiny.stream("parse-video", "answer", "segment")
    return run(method, stream, evaluation=Evaluation(batch_size=2), runtime=Runtime(device="cpu", out=out)).rows


@pytest.mark.slow
def test_a_run_with_a_cache_scores_the_same_whatever_lies_there(tmp_path):
    first = scores_of(tmp_path / "first", cache_gigabytes=1.0)
    assert len(entries(tmp_path / "first" / "cache")) == 3 * (4 + 3)
    shared = scores_of(tmp_path / "second", cache_gigabytes=1.0, cache_folder=tmp_path / "first" / "cache")
    assert first == shared
    events = [json.loads(line) for line in (tmp_path / "second" / "events.jsonl").read_text().splitlines()]
    counts = [event for event in events if event["event"] == "front_ends"]
    assert [event["made"] for event in counts] == [0, 0, 0] and all(event["read"] == 8 for event in counts)


@pytest.mark.slow
def test_loader_workers_read_entries(tmp_path):
    rows = []
    for workers in (0, 2):
        method = Php(Config(**tiny.SETTINGS, cache_gigabytes=1.0), clip=tiny.clip(), audio=tiny.clap())
        runtime = Runtime(device="cpu", out=tmp_path / str(workers), workers=workers)
        rows.append(run(method, tiny.stream("localize-events"), runtime=runtime).rows)
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_joint_training_takes_a_cache_too(tmp_path):
    config = AvJoint.Config(blocks=(0,), latents=2, reduction=4, epochs=1, mask_dim=8, mask_heads=2, cache_gigabytes=1)
    method = AvJoint(config, clip=tiny.clip(), audio=tiny.clap())
    run(method, tiny.stream("localize-events", "segment"), runtime=Runtime(device="cpu", out=tmp_path))
    assert len(entries(tmp_path / "cache")) == 2 * (4 + 3)


def test_without_a_folder_nothing_is_kept():
    cache = FrontEndCache(None, gigabytes=1.0, facts=[b"x"])
    cache.open(None)
    assert not cache.write("k", {"mel": torch.zeros(1)}) and cache.read("k") is None


def test_pixels_are_normalized_by_imagenet_or_as_the_clip_at_hand_was_made():
    clip = tiny.clip()
    clip.transform = replace(clip.transform, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    frames = torch.zeros(1, 1, 3, 2, 2, dtype=torch.uint8)
    own = System(clip=clip, clap=tiny.clap(), pixel_statistics="clip")
    assert pixels_of({"frames": frames}, own.statistics).unique().tolist() == [-2.0]  # (0 - 0.5) / 0.25
    published = System(clip=clip, clap=tiny.clap())
    assert published.statistics == IMAGENET
