"""``README.md`` of an export: what it is, of what, its numbers as a model-index, and how to ask it.

Knows the front matter of the Hugging Face hub. Does not know weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from perdure import recipe
from perdure.api import Opened
from perdure.calibration import has_logits
from perdure.files.text_files import read_json
from perdure.files.written_whole import write_text
from perdure.recipe import Recipe
from perdure.reporting import load, tables

TAGS = {
    "classify": "image-classification",
    "caption": "image-to-text",
    "instruct": "image-text-to-text",
    "answer": "visual-question-answering",
    "segment": "image-segmentation",
}
"""Kind of task -> the hub's name of it; others are video classification."""
LICENSES = {"openai/clip-": "mit", "laion/": "mit", "lmsys/vicuna-": "llama2", "llava-hf/llava-1.5": "llama2"}
"""Beginnings of hub ids -> their license."""


def write(opened: Opened, out: Path, usage: str, *, page: bool = False) -> None:
    """``README.md`` beside an export."""
    asked = opened.recipe
    card = opened.folder / "card.json"
    ran = read_json(card) if card.is_file() else {}  # none while the run is unfinished
    data = json.dumps(_data(ran) or asked.stream.name)
    name = f"{asked.method.name} on {json.loads(data)}"
    tag, bases = TAGS.get(opened.query.kind, "video-classification"), _bases(ran.get("weights", {}))
    transformers = (out / "model").is_dir() or (out / "config.json").is_file()
    front = [
        *([f"title: {json.dumps(name)}", "sdk: gradio", "app_file: app.py"] if page else []),
        *_license(bases),
        *(["library_name: transformers"] if transformers else []),
        *(["base_model:", *(f"- {base}" for base in bases)] if bases else []),
        f"pipeline_tag: {tag}",
        f"tags: [perdure, {asked.method.name}]",
        "model-index:",
        f"- name: {json.dumps(name)}",
        "  results:",
        f"  - task: {{type: {tag}}}",
        f"    dataset: {{type: {data}, name: {data}}}",
        *_numbers(opened.folder if ran else None),
    ]
    text = f"""# {name}

Made by perdure from the run in `{opened.folder.name}` (seed {asked.run.seed}). The numbers above are one seed's;
`recipe.yaml` beside this file makes it again: {again(asked)}.

```python
{usage.strip()}
```
{_what_numbers_are(opened)}"""
    write_text(out / "README.md", "\n".join(["---", *front, "---", text]))


def _what_numbers_are(opened: Opened) -> str:
    """A sentence on the probabilities, where there are any."""
    if opened.query.kind != "classify" or not has_logits(opened.method):
        return ""
    if opened.temperature is None:
        return "\nThe probabilities are a softmax, not calibrated: they do not say how often an answer is right.\n"
    return f"\nThe probabilities are calibrated on validation images (temperature {opened.temperature:g}).\n"


def again(asked: Recipe) -> str:
    """The command that makes the run again; where its data lie must be said, for an export travels."""
    roots = [name for name, setting in recipe.resolved(asked).items() if name.endswith(".root") and setting.value]
    command = " ".join(["perdure run recipe.yaml", *(f"{name}=..." for name in roots)])
    return f"`{command}`" + (", with the folder of its data" if roots else "")


def _data(ran: dict[str, Any]) -> str:
    """The data set's own name, or those of several, or of the tasks where each is a data set."""
    data = ran.get("data", {})
    if isinstance(data.get("name"), str):
        return data["name"]
    names = [str(name) for name, item in data.items() if isinstance(item, dict)]
    return ", ".join(names or [str(task["name"]) for task in ran.get("stream", {}).get("tasks", ())])


def _bases(weights: dict[str, Any]) -> list[str]:
    """Hub ids of the pretrained weights; folders and files of one machine are nobody else's."""
    said = [str(role.get("weights")) for role in weights.values() if isinstance(role, dict)]
    return [n for n in said if n.count("/") == 1 and not n.startswith((".", "~")) and not Path(n).exists()]


def _license(bases: list[str]) -> list[str]:
    """That of the pretrained weights where it is known; perdure's own where no others went in."""
    known = {next((said for start, said in LICENSES.items() if base.startswith(start)), "") for base in bases}
    if len(known) == 1 and "" not in known:
        return [f"license: {known.pop()}"]
    return ["license: other", "license_name: that-of-the-base-models"] if bases else ["license: apache-2.0"]


def _numbers(folder: Path | None) -> list[str]:
    """Those of the report, under the titles that they have there."""
    found = {} if folder is None else tables.run_numbers(load.read(folder))
    rows = [{"type": n.metric, "name": n.title, "value": round(v, 3)} for n, v in found.items()]
    return ["    metrics:", *(f"      - {json.dumps(row)}" for row in rows)] if rows else ["    metrics: []"]
