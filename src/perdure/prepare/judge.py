"""Saved answers judged with the help of a chat model, where no rule can read them: MathVista's way, or by meaning.

Knows records of instruction tasks, what a judge is asked and how its replies are read. Does not know who answers
(`chat`, `local`) or how a run was made. An answer that the task's own scorer finds right is not asked about.

Source: MathVista (Lu et al., ICLR 2024), sec. 3.2: a language model extracts the answer from the response, and rules
compare it. The requests' wording is ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from perdure.errors import DataError
from perdure.files.text_files import read_json_lines
from perdure.files.written_whole import write_text
from perdure.metrics import record_schemas
from perdure.metrics.vqa import record_values
from perdure.prepare.chat import Chat, Journal, Request, ask_all
from perdure.run_folder import run_files

How = Literal["extract", "compare"]
Record = Mapping[str, Any]
EXTRACT = (
    "You read what a response to a question states as its final answer. Write that answer and nothing else: the letter "
    "where the question offers lettered options, the number without its unit where it asks for one, else the shortest "
    "words that answer. Do not solve the question yourself. If the response states no answer, write: none"
)
COMPARE = (
    "You judge whether a response answers a question rightly. Rightly means: it says the same as the reference answer, "
    "in whatever words, and nothing that contradicts it. Write yes or no, and nothing else."
)
ATTEMPTS = 2
"""Requests for one answer, where a reply cannot be read."""


def judge_file(path: Path, out: Path, chat: Chat, *, how: How = "extract") -> dict[str, Any]:
    """Write a file of saved answers again, each with ``judged``: its score in [0, 1].

    Args:
        path: ``predictions/*.jsonl`` of a run of instruction tasks.
        out: the new file; replies are kept beside it, so that a second call asks for no more than is missing.
        chat: who is asked.
        how: `extract` the final answer, which rules compare; or `compare` response and reference by meaning.

    Returns:
        ``{"judged_accuracy": percent, "by_rule": answers that nobody was asked about, "asked": the others}``.

    Raises:
        DataError: these are no such records; the endpoint is down; or some answers could not be judged, and nothing is
            written.
    """
    records = _read(path)
    values = [_by_rule(record) for record in records]
    asked = [i for i, value in enumerate(values) if value < 1]
    journal = Journal(out.with_suffix(".replies.jsonl"))
    pending, why = asked, ""
    for attempt in range(ATTEMPTS):
        requests = [_request(records[i], how, attempt) for i in pending]
        unread = []
        for i, (text, failed) in zip(pending, ask_all(chat, requests, journal)):
            value = None if text is None else _value(records[i], text, how)
            if value is None:
                unread.append(i)
                why = failed or f"the reply {text!r} is neither yes nor no"
            else:
                values[i] = max(values[i], value)
        pending = unread
    if pending:
        raise DataError(
            f"{len(pending)} of {len(records)} answers could not be judged ({why})",
            where=f"{path}, {records[pending[0]]['id']}",
            todo="Take another model."
            if why.startswith("the reply")
            else "Run the same command again: replies are kept.",
        )
    lines = [json.dumps({**r, "judged": v}, ensure_ascii=False) + "\n" for r, v in zip(records, values)]
    write_text(out, "".join(lines))
    mean = 100 * sum(values) / len(values)
    return {"judged_accuracy": mean, "by_rule": len(records) - len(asked), "asked": len(asked)}


def same_answer(mine: str, truth: str, question: str = "") -> bool:
    """Whether an extracted answer is the reference: as texts; as numbers, to the reference's decimals; or one as the
    letter and one as the text of an option that the question lists."""
    mine, truth = (_plain(_option(text, question)) for text in (mine, truth))
    if mine == truth:
        return True
    numbers = [re.fullmatch(r"[-+]?\d[\d,]*(\.\d*)?%?", text) for text in (mine, truth)]
    if not all(numbers):
        return False
    one, other = (float(text.replace(",", "").rstrip("%")) for text in (mine, truth))
    decimals = len(truth.rstrip("%").partition(".")[2])
    return round(one, decimals) == round(other, decimals)


def _plain(text: str) -> str:
    return text.strip().strip("()").rstrip(".").strip().lower()


def _option(text: str, question: str) -> str:
    """The text of the option that a letter stands for, if the question lists it."""
    letter = _plain(text).upper()
    if len(letter) != 1:
        return text
    found = re.findall(r"(?:^|[\s,;])\(?([A-H])[).:]\s*(.+?)(?=[\s,;]+\(?[A-H][).:]\s|\n|$)", question)
    return dict(found).get(letter, text)


def _read(path: Path) -> list[dict[str, Any]]:
    schema = record_schemas.schema("instruction")
    found = list(read_json_lines(path))
    if not found or not all(isinstance(r, dict) and {"prediction", "target", "scorer"} <= r.keys() for _, r in found):
        expected = "predictions/*.jsonl of a run of instruction tasks"
        raise DataError("these are no records of answers", where=str(path), expected=expected)
    for number, record in found:
        run_files.check(schema, record, where=f"{path}, line {number}", todo="")
    return [record for _, record in found]


def _by_rule(record: Record) -> float:
    """What the task's own scorer says."""
    return record_values([record], record["scorer"], official=bool(record.get("official")))[0]


def _request(record: Record, how: How, attempt: int) -> Request:
    said = f"Question: {record.get('question', '')}\n\n"
    response = f"Response: {record.get('prediction') or ''}"
    if how == "compare":
        said += f"Reference answer: {' / '.join(_references(record))}\n\n"
    return Request(system=EXTRACT if how == "extract" else COMPARE, user=said + response, attempt=attempt)


def _references(record: Record) -> Sequence[str]:
    """The answers, any of which is right."""
    target = record["target"]
    if isinstance(target, Mapping):
        target = target.get("answers", target.get("answer", target.get("letter", json.dumps(target))))
    return [str(one) for one in (target if isinstance(target, list | tuple) else [target])]


def _value(record: Record, reply: str, how: How) -> float | None:
    """The score that a reply gives; None if it cannot be read."""
    text = reply.strip()
    if how == "compare":
        word = re.match(r"\W*(yes|no)\b", text.lower())
        return None if word is None else float(word[1] == "yes")
    question = str(record.get("question", ""))
    if any(same_answer(text, truth, question) for truth in _references(record)):
        return 1.0
    return _by_rule({**record, "prediction": text})
