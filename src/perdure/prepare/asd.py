"""Answer-style diversification: a share of a task's training records, rewritten in the four other answer styles.

Chen et al., SEFE, 2025 (arXiv 2505.02486): what is asked in many styles is not forgotten with its style. Records are
replaced, not added; X / 4 % go to each style; test data are never touched. What rules can rewrite, they do (`styles`);
a chat model writes the rest. A record that cannot be rewritten stays as it is, and is reported.

Knows the choice of records, requests, and the files that come of it. Does not know the network (`chat`).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.data.instruction import training_fault
from perdure.errors import DataError, RecipeError
from perdure.files.text_files import read_json
from perdure.files.written_whole import write_json
from perdure.keys import key_seed
from perdure.prepare import styles
from perdure.prepare.chat import Chat, Journal, Request, ask_all
from perdure.prepare.prompts import Item, Prompt, prompt
from perdure.prepare.replies import BadReply, read_reply
from perdure.prepare.styles import KINDS, STYLES, Asked

FEW = "too few records for this share"
"""Why fewer records are chosen than asked for; in the manifest, with how many."""
PER_REQUEST = 10
"""Most questions of one image in one request."""
TRIES = 3
"""Requests for a record whose replies cannot be used, before it stays as it is."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What became of a training file."""

    records: list[dict[str, Any]]
    """As they are written: shuffled, or, with a share of 0, the source's."""
    manifest: dict[str, Any]
    """What became of what: counts, and one entry a chosen record."""


def diversify(
    records: Sequence[Mapping[str, Any]],
    *,
    task: str,
    kind: str,
    share: float,
    seed: int = 0,
    chat: Chat | None = None,
    journal: Journal | None = None,
    images: Path | None = None,
) -> Made:
    """Rewrite `share` percent of the records, in equal parts in the four styles that are not theirs.

    Args:
        records: training records in LLaVA's form.
        task: part of the key of every random choice.
        kind: one of `styles.KINDS`; of CoIN's tasks, see `styles.COIN_KINDS`.
        chat: writes what rules cannot; without it such styles stay undone and are reported.
        journal: keeps replies, so that a later call does not ask again.
        images: folder that image paths start from; None: no image is shown to the model, and the manifest counts the
            records that it has rewritten unseen, as it does for a model that sees none.

    Raises:
        RecipeError: an unknown kind or a share outside 0..100.
        DataError: the endpoint is down.
    """
    if kind not in KINDS:
        raise RecipeError(f"there is no kind {kind!r}", expected="one of " + ", ".join(KINDS))
    if not 0 <= share <= 100:
        raise RecipeError(f"the share is {share}", expected="0 to 100 percent")
    chosen, unfit = choose(records, task=task, kind=kind, share=share, seed=seed)
    work = _Work(records, task, kind, seed)
    done, failed = work.by_rules(chosen)
    rest = {i: style for i, style in chosen.items() if i not in done and i not in failed}
    unseen = 0
    if chat is None:
        failed |= dict.fromkeys(rest, "no chat model was given")
    elif rest:
        shown = images if images is not None and chat.sees else None
        answered, missing = work.by_model(rest, chat, journal, shown)
        unseen = sum(records[i].get("image") is not None for i in answered) if shown is None else 0
        done |= answered
        failed |= missing
    made = [dict(done.get(i, record)) for i, record in enumerate(records)]
    if share:
        random.Random(key_seed(seed, task, "shuffle")).shuffle(made)
    manifest = _manifest(records, chosen, done, failed, unfit, kind, unseen)
    return Made(records=made, manifest=manifest | {"too_few": _too_few(len(records), share, chosen, unfit)})


def diversify_file(
    source: Path,
    out: Path,
    *,
    task: str,
    kind: str,
    share: float,
    seed: int = 0,
    chat: Chat | None = None,
    images: Path | None = None,
) -> dict[str, Any]:
    """`diversify` from file to file; the manifest beside it, which is returned, and the journal of replies.

    ``train_x20.json`` brings ``train_x20.manifest.json``; replies lie in ``asd_replies.jsonl`` in the same folder.
    """
    source, out = Path(source), Path(out)
    if out.resolve() == source.resolve():
        raise RecipeError("the new file would replace its source", where=str(out))
    records = read_json(source)
    if not isinstance(records, list):
        raise DataError("this is no list of records", where=str(source))
    if odd := [i for i, record in enumerate(records) if not isinstance(record, Mapping)]:
        raise DataError(f"record {odd[0]} is no object", where=str(source), expected="records in LLaVA's form")
    journal = Journal(out.parent / "asd_replies.jsonl")
    made = diversify(records, task=task, kind=kind, share=share, seed=seed, chat=chat, journal=journal, images=images)
    head = {
        "source": str(source),
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "task": task,
        "share_percent": share,
        "seed": seed,
        "model": chat.name if chat else None,
    }
    manifest = {**head, **made.manifest}
    out.parent.mkdir(parents=True, exist_ok=True)
    if share == 0:
        out.write_bytes(source.read_bytes())
    else:
        write_json(out, made.records)
    write_json(out.with_suffix(".manifest.json"), manifest)
    return manifest


def choose(
    records: Sequence[Mapping[str, Any]], *, task: str, kind: str, share: float, seed: int
) -> tuple[dict[int, str], dict[str, int]]:
    """The records to rewrite with their new style, and why how many others cannot be.

    ``floor(n share / 400)`` for each of the four styles, by a random order of those that can be rewritten.
    """
    unfit: Counter[str] = Counter()
    fit = []
    for i, record in enumerate(records):
        why = _unfit(record, kind)
        if why:
            unfit[why] += 1
        else:
            fit.append(i)
    random.Random(key_seed(seed, task, "choose")).shuffle(fit)
    targets = [style for style in STYLES if style != KINDS[kind].native]
    each = int(len(records) * share / (100 * len(targets)) + 1e-9)
    wanted = [style for style in targets for _ in range(each)]
    # where too few records are fit, all styles lose alike
    if len(wanted) > len(fit):
        unfit[FEW] = len(wanted) - len(fit)
        wanted = [targets[i % len(targets)] for i in range(len(fit))]
    return dict(zip(fit, wanted)), dict(unfit)


def _too_few(count: int, share: float, chosen: Mapping[int, str], unfit: Mapping[str, int]) -> str:
    """Why fewer records than the share were chosen, in a sentence; empty if they were not."""
    if share and not chosen:
        least = math.ceil(400 / max(count, 1))
        todo = f"a share of {least} makes one of each" if least <= 100 else "it takes four records to make one of each"
        return f"{share:g} % of {count} records do not make one of each of the four styles: none was rewritten; {todo}"
    if lost := unfit.get(FEW, 0):
        return f"{lost} fewer than {share:g} % were rewritten: too few records fit (not_considered in the manifest)"
    return ""


def _unfit(record: Any, kind: str) -> str | None:
    if training_fault(record) is not None:
        return "faulty records"
    if isinstance(record.get("image"), list) or record.get("video") is not None:
        return "records of several images or a video, which no request can show"
    said = styles.asked(record)
    if said is None:
        return "records of several rounds, or letters without options"
    if kind == "choice" and not said.choices:
        return "questions without options"
    if KINDS[kind].native == "short" and styles.is_yes_no(said):
        return "yes/no questions, which have a style of their own"
    return None


class _Work:
    """Rewrites chosen records of one task."""

    def __init__(self, records: Sequence[Mapping[str, Any]], task: str, kind: str, seed: int) -> None:
        self.records, self.task, self.kind, self.seed = records, task, kind, seed
        self.categories: list[str] = []
        if kind == "category":
            answers = (styles.asked(r) for r in records if training_fault(r) is None)
            self.categories = sorted({said.answer for said in answers if said is not None})

    def by_rules(self, chosen: Mapping[int, str]) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """Records that need no model, rewritten; and why some cannot be."""
        done: dict[int, dict[str, Any]] = {}
        failed: dict[int, str] = {}
        for i, style in chosen.items():
            if style not in KINDS[self.kind].by_rule:
                continue
            record, said = self.records[i], self._said(i)
            if style == "short":
                done[i] = styles.short(record, said)
                continue
            draw = self._draw(i, style)
            wrong = styles.rule_distractors(
                self.kind, said, 3 if style == "mcq" else 1, draw, categories=self.categories
            )
            if wrong is None:
                failed[i] = "too few wrong answers can be found"
            else:
                done[i] = self._with_distractors(i, style, wrong)
        return done, failed

    def by_model(
        self, chosen: Mapping[int, str], chat: Chat, journal: Journal | None, images: Path | None
    ) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """Records that a chat model rewrites, seeing what is in `images`; and why some stay as they are."""
        journal = journal or Journal()
        done: dict[int, dict[str, Any]] = {}
        failed: dict[int, str] = {}
        groups = list(self._groups(chosen))
        for attempt in range(TRIES):
            requests = [self._request(members, wanted, attempt, images) for members, wanted in groups]
            replies = ask_all(chat, requests, journal)
            again = []
            for (members, wanted), (text, why) in zip(groups, replies):
                found, wrong = self._used(members, chosen[members[0]], wanted, text, why)
                done |= found
                failed = {i: w for i, w in failed.items() if i not in found} | wrong
                if wrong and text is not None:
                    # what came in a batch is asked alone the next time
                    again += [((i,), self._prompt((i,), chosen[i])) for i in wrong]
            groups = again
        return done, failed

    def _used(
        self, members: Sequence[int], style: str, wanted: Prompt, text: str | None, why: str
    ) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """What a reply makes of its records."""
        if text is None:
            return {}, dict.fromkeys(members, why)
        try:
            values = read_reply(text, wanted)
        except BadReply as error:
            return {}, dict.fromkeys(members, f"the reply cannot be used: {error}")
        done: dict[int, dict[str, Any]] = {}
        failed: dict[int, str] = {}
        for i, value in zip(members, values):
            right = self._said(i).answer_text.strip().lower()
            wrong = [value] if style == "yn" else value if style == "mcq" else []
            if any(w.strip().lower() == right for w in wrong):
                failed[i] = "the reply cannot be used: a wrong answer is the right one"
            elif wrong:
                done[i] = self._with_distractors(i, style, wrong)
            else:
                done[i] = styles.explained(self.records[i], self._said(i), style, self.kind, value)
                if training_fault(done[i]) is not None:
                    failed[i] = f"the reply cannot be used: {training_fault(done.pop(i))}"
        return done, failed

    def _groups(self, chosen: Mapping[int, str]) -> Iterator[tuple[tuple[int, ...], Prompt]]:
        """Records that go into one request, with their prompt."""
        by_key: dict[Any, list[int]] = defaultdict(list)
        for i, style in sorted(chosen.items()):
            image = self.records[i].get("image")
            together = KINDS[self.kind].batched and image is not None
            by_key[(style, image) if together else (style, i, None)].append(i)
        for (style, *_), members in by_key.items():
            for start in range(0, len(members), PER_REQUEST):
                part = tuple(members[start : start + PER_REQUEST])
                yield part, self._prompt(part, style)

    def _prompt(self, members: Sequence[int], style: str) -> Prompt:
        items = []
        for i in members:
            said = self._said(i)
            options = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCDE", said.choices))
            has_image = self.records[i].get("image") is not None
            answer = f"{said.answer}. {said.answer_text}" if said.choices else said.answer
            items.append(Item(question=said.question + options, answer=answer, has_image=has_image))
        return prompt(KINDS[self.kind].prompts, style, items)

    def _request(self, members: Sequence[int], wanted: Prompt, attempt: int, images: Path | None) -> Request:
        image = self.records[members[0]].get("image")
        shown = images / image if images is not None and image is not None else None
        return Request(system=wanted.system, user=wanted.user, image=shown, attempt=attempt)

    def _with_distractors(self, i: int, style: str, wrong: Sequence[str]) -> dict[str, Any]:
        record, said, draw = self.records[i], self._said(i), self._draw(i, style, "place")
        if style == "yn":
            return styles.yes_no(record, said, wrong[0], draw)
        return styles.multiple_choice(record, said, wrong, draw)

    def _said(self, i: int) -> Asked:
        said = styles.asked(self.records[i])
        assert said is not None
        return said

    def _draw(self, *key: Any) -> random.Random:
        return random.Random(key_seed(self.seed, self.task, *key))


def _manifest(
    records: Sequence[Mapping[str, Any]],
    chosen: Mapping[int, str],
    done: Mapping[int, Any],
    failed: Mapping[int, str],
    unfit: Mapping[str, int],
    kind: str,
    unseen: int,
) -> dict[str, Any]:
    """Counts by style, failures by reason, and each chosen record: its place, id and style."""
    made = Counter(chosen[i] for i in done)
    by_rule = KINDS[kind].by_rule
    return {
        "kind": kind,
        "records": len(records),
        "styles": {
            KINDS[kind].native: len(records) - len(done),
            **{s: made[s] for s in STYLES if s != KINDS[kind].native},
        },
        "by_rule": sum(chosen[i] in by_rule for i in done),
        "by_model": sum(chosen[i] not in by_rule for i in done),
        "by_model_unseen": unseen,
        "not_considered": dict(unfit),
        "failed": [
            {"record": i, "id": _name(records[i]), "style": chosen[i], "why": failed[i]} for i in sorted(failed)
        ],
        "changed": [{"record": i, "id": _name(records[i]), "style": chosen[i]} for i in sorted(done)],
    }


def _name(record: Mapping[str, Any]) -> Any:
    return record.get("id", record.get("question_id"))
