"""`perdure predict --method`: adapt to each of the user's own images, and say what was answered before and after.

Knows class lists, methods that adapt at test time, and how their answers are shown. Does not know how they adapt.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from perdure.cli import _stated as stated
from perdure.files.text_files import lines, read_text

if TYPE_CHECKING:
    from perdure.runtime import Runtime


def adapt(
    name: str,
    classes: Sequence[str],
    files: Sequence[Path],
    *,
    models: Sequence[str],
    settings: Sequence[str],
    top: int,
    device: str,
) -> tuple[list[dict[str, Any]], Runtime]:
    """One object a readable file: ``{"file", "before", "after", "reward"}``, each a list of classes, best first.

    Args:
        name: a method that adapts at test time.
        models: ``role=weights``.
        settings: ``key=value`` of the method.

    Raises:
        RecipeError: the method does not adapt, or a role or a setting is unknown.
        DataError: no classes, or too few.
    """
    from perdure import device_memory
    from perdure.errors import DataError
    from perdure.settings import registry

    if len(classes) < 2:
        raise DataError(f"{len(classes)} class(es)", where="--classes", expected="two names or more, with commas")
    _require_adapting(name)
    weights = stated.weights(name, models)  # before the method is loaded, and torch with it
    config = stated.settings(name, settings)
    from perdure.runtime import Runtime
    from perdure.runtime.placing import place
    from perdure.types import NO_EXAMPLES, Query, Task

    runtime = Runtime(device=device, quiet=True, unreadable="skip")
    loaded = {role: stated.clip(text).build() for role, text in weights.items()}
    method = registry.load("methods", name)(config, **loaded)
    unadapted = registry.load("methods", name)(replace(config, steps=0), **loaded)
    query = Query(kind="classify", candidates=tuple(classes))
    for one in (method, unadapted):
        place(one, runtime)
        one.learn(
            Task(index=0, name="own images", kind="classify", candidates=query.candidates, train=NO_EXAMPLES), runtime
        )
    with device_memory.explained(None, runtime, todo="Set fewer views (--set views=16), or add --device cpu."):
        return _rows(method, unadapted, query, files, top, runtime), runtime


def read_classes(text: str) -> list[str]:
    """Names with commas between them (quote a name that has one), or ``@FILE`` with a name on each line.

    Raises:
        DataError: the file is missing, quotes do not fit, or a name is there twice or holds a control character.
    """
    from perdure.errors import DataError

    if text.startswith("@"):
        path = Path(text[1:]).expanduser()
        if not path.is_file():
            raise DataError("no such file", where=str(path), expected="a class name on each line")
        found = [line.strip() for line in lines(read_text(path))]
    else:
        try:
            found = [name.strip() for row in csv.reader([text], skipinitialspace=True, strict=True) for name in row]
        except csv.Error as fault:
            raise DataError(
                f"its quotes do not fit ({fault})", where="--classes", expected='a,"b, with a comma"'
            ) from None
    names = [name for name in found if name]
    if odd := [name for name in names if not name.isprintable()]:
        raise DataError(f"a name holds a control character: {odd[0][:80]}", where="--classes", expected="plain words")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"{sorted(twice)[0]!r} is there twice", where="--classes", expected="different names")
    return names


def show(rows: Sequence[dict[str, Any]], *, form: Literal["json", "csv", "text"]) -> str:
    """The rows as JSON lines, comma-separated values, or a line of text each."""
    if form == "json":
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    if form == "csv":
        lines = ["file,when,rank,class,value"]
        for row in rows:
            for when in ("before", "after", "reward"):
                for rank, answer in enumerate(row.get(when, ()), start=1):
                    quoted = ['"' + str(v).replace('"', '""') + '"' for v in (row["file"], answer["class"])]
                    lines.append(f"{quoted[0]},{when},{rank},{quoted[1]},{answer['value']}")
        return "\n".join(lines)
    return "\n".join(row["file"] + "".join(f"  {w}: {_said(row[w])}" for w in _PARTS if row.get(w)) for row in rows)


def write_page(path: Path, rows: Sequence[dict[str, Any]], *, method: str) -> None:
    """One HTML page with the images, and the answers before and after beside them; nothing is loaded from elsewhere."""
    from jinja2 import Environment

    from perdure.files.written_whole import write_text

    source = Path(__file__).with_name("_adapt.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    shown = [{**row, "thumbnail": _thumbnail(Path(row["file"])), "changed": _changed(row)} for row in rows]
    write_text(path, template.render(rows=shown, method=method, changed=sum(row["changed"] for row in shown)))


_PARTS = ("before", "after", "reward")


def _said(answers: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{a['class']} ({a['value']:g})" for a in answers)


def _changed(row: dict[str, Any]) -> bool:
    return row["before"][0]["class"] != row["after"][0]["class"]


def _require_adapting(name: str) -> None:
    from perdure.errors import RecipeError
    from perdure.settings import registry

    if not _adapts(name):
        raise RecipeError(
            f"`{name}` does not adapt to single images",
            where="--method",
            expected=f"one of {', '.join(filter(_adapts, registry.names('methods')))}",
            todo="A method that learns is used by the folder of its run: perdure predict RUN FILE...",
        )


def _adapts(name: str) -> bool:
    """Whether a method takes steps on single images."""
    from perdure.settings import config, registry

    about = registry.describe("methods", name)
    takes = "policy" in about.roles and "classify" in about.answers
    return takes and "steps" in config.field_types(registry.settings("methods", name))


def _rows(method: Any, unadapted: Any, query: Any, files: Sequence[Path], top: int, runtime: Any) -> list[dict]:
    import torch

    from perdure.loading import ExampleBatches
    from perdure.types import Example

    examples = [Example(id=str(path), inputs={"image": path}) for path in files]
    batches = ExampleBatches(
        examples, method.preprocess, batch_size=4, runtime=runtime, stage="predict", training=False
    )
    before, after, rewarded = unadapted.predictor(query), method.predictor(query), _reward(method, query)
    top, rows = min(top, len(query.candidates)), []
    for batch, _ in batches.epoch(0):
        if batch is None:
            continue
        with torch.no_grad():
            plain = before(batch).float().softmax(1)
        scores = {"before": plain, "after": after(batch).detach().float().softmax(1)}
        if rewarded is not None:
            scores["reward"] = rewarded(batch)
        for i, position in enumerate(batch["position"].tolist()):
            parts = {part: _best(table[i], query.candidates, top) for part, table in scores.items()}
            rows.append({"file": str(files[position]), **parts})
    return rows


def _reward(method: Any, query: Any) -> Any:
    """The reward of every class for the plain view of each image; None where a method has no reward model."""
    from perdure.families.clip import classifier

    reward = getattr(method, "reward", None) or getattr(method, "teacher", None)
    if reward is None:
        return None
    config = method.config
    template = getattr(config, "reward_template", None) or config.template
    prompts = classifier.prompts(template, query.candidates, clean=getattr(config, "clean_names", True))
    texts = reward.encode_texts(prompts)
    normalize = method.policy.transform.normalize
    return lambda batch: reward.table(reward.encode_images(normalize(batch["views"][:, 0])), texts)


def _best(scores: Any, names: Sequence[str], top: int) -> list[dict[str, Any]]:
    values, labels = scores.topk(top)
    return [{"class": names[i], "value": round(float(v), 4)} for v, i in zip(values, labels.tolist())]


def _thumbnail(path: Path) -> str:
    """A small JPEG as a data URI."""
    import base64
    import io

    from perdure.images import open_image

    image = open_image(path)
    image.thumbnail((192, 192))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
