"""MUSIC-AVQA: 45,867 questions about 9,288 videos of music, 42 answers.

Needs: 40 GB prepared frames and sound.

Li et al., Learning to Answer Questions in Dynamic Audio-Visual Scenarios, CVPR 2022. Below `root`: ``frames``, ``wave``
(or ``audio_wave``) and ``labels/json/avqa-{train,val,test}.json``. Words and answers are numbered as in the
published lists.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perdure.files.text_files import read_json
from perdure.types import Dataset

SEGMENTS = 10
LONGEST = 14
"""Words of a question; shorter ones are padded."""
TODO = "Take MUSIC-AVQA's json files into <root>/labels/json."


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the reader of MUSIC-AVQA."""

    root: Path = Path("data/MUSIC-AVQA")
    """Folder with `frames`, `wave` and `labels`."""
    vocabulary: Literal["published", "train"] = "published"
    """Words and answers: the published lists (93 and 42), or those of the training questions as they come."""
    on_missing: Literal["stop", "skip"] = "stop"
    """What to do with questions about videos that lack frames or sound: stop with a list, or leave them out."""


def files(config: Config):
    """Annotation files of a complete copy."""
    return [config.root / "labels" / "json" / f"avqa-{split}.json" for split in ("train", "val", "test")]


def read(config: Config) -> Dataset:
    """``{"answer": index, "type": [modality, kind]}`` a question, word ids among the inputs."""
    from perdure.data import clips

    root = config.root.expanduser()
    names = {"train": "train", "validation": "val", "test": "test"}
    folder = root / "labels" / "json"
    records = {split: read_records(folder / f"avqa-{name}.json") for split, name in names.items()}
    words, answers = vocabulary(config.vocabulary, records["train"], where=str(folder / "avqa-train.json"))
    parts, left_out = {}, {}
    for split, rows in records.items():
        where = str(folder / f"avqa-{names[split]}.json")
        items = [item(row, words, answers, where=f"{where}, question {row['question_id']}") for row in rows]
        parts[split], left_out[split] = clips.examples(
            clips.unique_ids(items), root, segments=SEGMENTS, on_missing=config.on_missing, what="MUSIC-AVQA"
        )
    facts = {"segments": SEGMENTS, "vocabulary": list(words), "left_out": left_out, "source": "MUSIC-AVQA"}
    return Dataset(name="AVQA", kind="answer", candidates=tuple(answers), facts=facts, **parts)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The questions of a file; `type` and `templ_values` are unpacked.

    Raises:
        DataError: no such file, no JSON, or a record without a field; the record is named.
    """
    from perdure.errors import DataError

    rows = read_json(path, todo=TODO)
    fields = ("video_id", "question_id", "type", "question_content", "templ_values", "anser")
    result = []
    for number, row in enumerate(rows):
        if lacking := [name for name in fields if name not in row]:
            raise DataError(f"it has no {lacking[0]!r}", where=f"{path}, record {number}", expected=", ".join(fields))
        try:
            unpacked = {name: json.loads(row[name].replace("'", '"')) for name in ("type", "templ_values")}
        except ValueError:
            raise DataError(
                "`type` or `templ_values` is not a list", where=f"{path}, record {number}", expected="a JSON list"
            ) from None
        result.append(row | unpacked)
    return result


def words_of(question: str, values: Sequence[str]) -> list[str]:
    """Words of a question: the last one without its question mark, words with ``<`` replaced by the values in turn."""
    words = question.rstrip().split(" ")
    words[-1] = words[-1][:-1]
    given = iter(values)
    return [next(given, word) if "<" in word else word for word in words]


def vocabulary(
    source: Literal["published", "train"], train: Sequence[dict[str, Any]], *, where: str
) -> tuple[list[str], list[str]]:
    """Words (the first is padding) and answers, in the order of their numbers."""
    from perdure.data import lists
    from perdure.errors import DataError

    if source == "published":
        published = lists.load("audio_visual.json")
        return published["music_avqa__words"], published["music_avqa__answers"]
    words = dict.fromkeys(["<pad>"])
    for row in train:
        words.update(dict.fromkeys(words_of(row["question_content"], row["templ_values"])))
    answers = list(dict.fromkeys(row["anser"] for row in train))
    if not answers:
        raise DataError("there is no question to take words and answers from", where=where)
    return list(words), answers


def word_ids(asked: Sequence[str], words: Sequence[str], *, where: str) -> list[int]:
    """Numbers of a question's words, padded to `LONGEST`.

    Raises:
        DataError: a word has no number, or the question is too long.
    """
    from perdure.errors import DataError

    if unknown := [word for word in asked if word not in words]:
        raise DataError(f"the word {unknown[0]!r} is not in the vocabulary", where=where, todo="See `vocabulary`.")
    if len(asked) > LONGEST:
        raise DataError(f"a question of {len(asked)} words", where=where, expected=f"at most {LONGEST}")
    return [words.index(word) for word in asked] + [0] * (LONGEST - len(asked))


def item(row: dict[str, Any], words: Sequence[str], answers: Sequence[str], *, where: str) -> Any:
    """One question as an item.

    Raises:
        DataError: a word or the answer has no number, or the question is too long.
    """
    from perdure.data import clips
    from perdure.errors import DataError

    asked = words_of(row["question_content"], row["templ_values"])
    ids = word_ids(asked, words, where=where)
    if row["anser"] not in answers:
        raise DataError(f"the answer {row['anser']!r} is not among the {len(answers)} answers", where=where)
    target = {"answer": answers.index(row["anser"]), "type": list(row["type"])}
    more = (("question", ids), ("question_text", " ".join(asked) + "?"))
    return clips.Item(f"{row['video_id']}/{row['question_id']}", str(row["video_id"]), target, more)
