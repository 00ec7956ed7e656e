"""Is a wrong answer wrong in its form or in its content? Format validators and the split of forgetting.

Superficial: wrong, and not in the form that the question asks for (a box where a letter was asked).
Essential: wrong in the right form: knowledge is missing. The two notions are SEFE's (arXiv 2505.02486);
the validators and their rates are perdure's own, upstream has no code for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from perdure.errors import DataError
from perdure.metrics.vqa import parse_box, record_values


def split_errors(
    records: Sequence[Mapping[str, Any]], scorer: str, form: str | None = None, *, official: bool = False
) -> dict[str, float | None]:
    """Format compliance and the two shares of wrong answers, in percent of the records; None of no records.

    ``accuracy + superficial + essential = 100``: a partly right answer counts by its value. `form` is one of
    `FORMS`; by default the form that the task's questions ask for (`TASK_FORMS`).
    """
    valid = validator(form or TASK_FORMS[scorer])
    values = record_values(records, scorer, official=official)
    fits = [valid(r.get("prediction") or "") for r in records]
    count = len(records)
    if not count:
        return dict.fromkeys(("format_compliance", "superficial", "essential"))
    return {
        "format_compliance": 100 * sum(fits) / count,
        "superficial": 100 * sum(1 - v for v, fit in zip(values, fits) if not fit) / count,
        "essential": 100 * sum(1 - v for v, fit in zip(values, fits) if fit) / count,
    }


def validator(form: str) -> Callable[[str], bool]:
    """The check of a form by its name."""
    if form not in FORMS:
        raise DataError(f"there is no answer form {form!r}", expected="one of " + ", ".join(FORMS))
    return FORMS[form]


def is_option_letter(text: str) -> bool:
    """``B``, ``B.`` or ``B. because ...``."""
    return re.fullmatch(r"[A-E](\.|[.:)] .*)?", text.strip(), re.S) is not None


def is_yes_no(text: str) -> bool:
    """``Yes`` or ``No``, any case, with or without a final period."""
    return text.strip().rstrip(".").lower() in ("yes", "no")


def is_phrase(text: str, *, words: int = 5) -> bool:
    """One to `words` words: no list of numbers, no option letter (``A``), no sentence."""
    stripped = text.strip()
    return 1 <= len(stripped.split()) <= words and not is_box(stripped) and not re.fullmatch(r"[A-E]\.?", stripped)


def is_box(text: str) -> bool:
    """Four numbers within [0, 1] and nothing but brackets, commas and spaces around them."""
    box = parse_box(text)
    bare = re.fullmatch(r"[\[\](){},.\s\d+-]*", text) is not None
    return box is not None and bare and all(0 <= v <= 1 for v in box)


def is_explanation(text: str) -> bool:
    """More words than a phrase."""
    return len(text.split()) > 5


FORMS: dict[str, Callable[[str], bool]] = {
    "letter": is_option_letter,
    "yes_no": is_yes_no,
    "phrase": is_phrase,
    "title": lambda text: is_phrase(text, words=25),
    "box": is_box,
    "explanation": is_explanation,
    "any": lambda text: bool(text.strip()),
}

TASK_FORMS = {
    "scienceqa": "letter",
    "textvqa": "phrase",
    "imagenet": "phrase",
    "gqa": "phrase",
    "vizwiz": "phrase",
    "grounding": "box",
    "vqav2": "phrase",
    "ocrvqa": "title",
    "exact": "any",
    "equal": "any",
    "contains": "any",
    "contains_word": "phrase",
    "science": "any",
    "loose_letter": "letter",
    "squeezed": "any",
    "ocrbench": "any",
    "caption": "any",
}
"""The form that a scorer's test questions ask for (OCR-VQA's answers are titles of books)."""
