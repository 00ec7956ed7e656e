"""`perdure prepare`: make data before a run: answer styles (asd), CLIP features; or score what a run has said.

Knows arguments and what is printed. `perdure.prepare` does the work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from perdure.cli import SETTINGS, epilog
from perdure.cli._layout import libraries_aside

EXAMPLES = """
perdure prepare asd --root /data/CoIN --task ImageNet --share 20 --endpoint http://localhost:8000/v1 --model qwen
perdure prepare predictions merge.jsonl --task gqa --answers testdev_balanced_questions.json --out gqa.jsonl
perdure prepare features --data coco_captions --root /data/coco2014 --out coco.safetensors
perdure prepare clipscore runs/rlcf_caption-capdec_flickr30k/seed_0/predictions/0_0.jsonl --images /data/flickr30k
"""
How = Literal["extract", "compare"]
app = typer.Typer(
    help="Make data before a run.",
    epilog=epilog(EXAMPLES),
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings=SETTINGS,
)
DIVERSIFIED = """
perdure prepare asd --root /data/CoIN --task ScienceQA --task GQA --share 20 --endpoint URL --model NAME
perdure prepare asd mine/train.json --kind question --share 40 --local Qwen/Qwen2.5-VL-7B-Instruct
"""
JOINED = """
perdure prepare predictions merge.jsonl --task scienceqa --answers /data/CoIN/ScienceQA --out scienceqa.jsonl
perdure score scienceqa.jsonl --metric answer_scores
"""
FEATURES = """
perdure prepare features --data coco_captions --root /data/coco2014 --out coco.safetensors
perdure prepare features --data caption_texts --root captions.txt --out texts.safetensors
"""
SCORED = """
perdure prepare clipscore RUN/predictions/0_0.jsonl --images /data/flickr30k
perdure score RUN/predictions/0_0.clipscore.jsonl --metric clipscore
"""
JUDGED = """
perdure prepare judge RUN/predictions/3_1.jsonl --endpoint http://localhost:8000/v1 --model qwen
perdure prepare judge RUN/predictions/3_*.jsonl --local Qwen/Qwen2.5-7B-Instruct --how compare
perdure score RUN/predictions/3_1.judged.jsonl --metric judged_accuracy
"""
RESULTS = """
perdure prepare coco-results RUN/predictions/0_0.jsonl --out coco_format
"""


@app.command("asd", epilog=epilog(DIVERSIFIED), context_settings=SETTINGS)
def asd(
    source: Annotated[Path | None, typer.Argument(help="a training file of your own")] = None,
    root: Annotated[Path | None, typer.Option("--root", help="CoIN's folder, and where image paths start")] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="a CoIN task; may be repeated [all eight]")] = None,
    kind: Annotated[str, typer.Option("--kind", help="of your own file: choice, question, questions, box ...")] = "",
    share: Annotated[float, typer.Option("--share", help="percent of the records to rewrite")] = 20.0,
    seed: Annotated[int, typer.Option("--seed", help="chooses records, wrong answers and order")] = 0,
    endpoint: Annotated[str, typer.Option("--endpoint", help="address of an OpenAI-compatible endpoint")] = "",
    model: Annotated[str, typer.Option("--model", help="the model's name at the endpoint")] = "",
    key_variable: Annotated[
        str, typer.Option("--key-variable", help="environment variable that holds the key")
    ] = "OPENAI_API_KEY",
    local: Annotated[
        str, typer.Option("--local", help="a chat model of transformers, one that sees or not: hub id or folder")
    ] = "",
    per_minute: Annotated[float | None, typer.Option("--per-minute", help="most requests a minute")] = None,
    parallel: Annotated[int, typer.Option("--parallel", help="requests under way at a time")] = 8,
    timeout: Annotated[float, typer.Option("--timeout", help="seconds to wait for a reply")] = 120.0,
    text_only: Annotated[bool, typer.Option("--text-only", help="do not show images to the model")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="of one file [train_xNN.json beside the source]")] = None,
) -> None:
    """Rewrite a share of the training records in the four other answer styles.

    The new file and its manifest lie beside the source. Stopped, the same command goes on where it was.
    Exit code 0: the share was rewritten; 1: some of it stays as it was, or is too small to hold a record of each
    style; what stays is named, and why in the manifest.
    """
    from perdure.files.folders import require_file
    from perdure.prepare.asd import diversify_file

    jobs = _jobs(source, root, task or [], kind, share, out)
    for *_, target in jobs:
        require_file(target, setting="--out")
    chat = _chat(endpoint, model, key_variable, local, per_minute, parallel, timeout)
    complete = True
    for name, own_kind, file, target in jobs:
        images = None if text_only or chat is None else (root or file.parent)
        with libraries_aside():
            manifest = diversify_file(
                file, target, task=name, kind=own_kind, share=share, seed=seed, chat=chat, images=images
            )
        _print(name, target, manifest)
        complete = complete and not manifest["failed"] and not manifest["too_few"]
    if not complete:
        raise SystemExit(1)


@app.command("predictions", epilog=epilog(JOINED), context_settings=SETTINGS)
def predictions(
    file: Annotated[Path, typer.Argument(help="upstream's merge.jsonl: question_id, prompt, text")],
    task: Annotated[str, typer.Option("--task", help="scienceqa, textvqa, imagenet, gqa, vizwiz, grounding ...")],
    answers: Annotated[Path, typer.Option("--answers", help="CoIN's test.json, or the task's own reference file")],
    out: Annotated[Path, typer.Option("--out", help="records for perdure score")],
    official: Annotated[bool, typer.Option("--official", help="score with the published scorers' defects")] = False,
    form: Annotated[str, typer.Option("--form", help="form that the questions ask for [that of the task]")] = "",
) -> None:
    """Make scorable records of predictions that another tool saved."""
    import json

    from perdure.errors import RecipeError
    from perdure.files.folders import require_file
    from perdure.files.written_whole import write_text
    from perdure.metrics.answer_format import FORMS, TASK_FORMS
    from perdure.metrics.vqa_files import join, read_annotations, read_predictions

    for what, value, known in (("task", task, TASK_FORMS), ("form", form or "any", FORMS)):
        if value not in known:
            raise RecipeError(f"there is no {what} {value!r}", where=f"--{what}", expected=", ".join(known))
    require_file(out, setting="--out")
    rows = join(read_predictions(file), read_annotations(answers, task), task, official=official, where=str(file))
    unanswered = sum(row["prediction"] is None for row in rows)
    more = {"scorer": task, "form": form or TASK_FORMS[task], "official": official}
    write_text(out, "".join(json.dumps({**row, **more}, ensure_ascii=False) + "\n" for row in rows))
    print(f"wrote {len(rows)} records to {out}")
    if unanswered:
        print(f"{unanswered} of {len(rows)} questions have no answer in {file}; they count as wrong")
    print(f"perdure score {out} --metric answer_accuracy --metric superficial")


@app.command("features", epilog=epilog(FEATURES), context_settings=SETTINGS)
def features(
    data: Annotated[str, typer.Option("--data", help="data set of captioned images, or caption_texts")],
    out: Annotated[Path, typer.Option("--out", help="the file that ClipCap and CapDec read as `features`")],
    root: Annotated[Path | None, typer.Option("--root", help="its folder (of caption_texts: the file)")] = None,
    weights: Annotated[str, typer.Option("--weights", help="CLIP")] = "openai/clip-vit-base-patch16",
    settings: Annotated[list[str] | None, typer.Option("--set", help="of the data set: key=value")] = None,
    texts_only: Annotated[bool, typer.Option("--texts-only", help="captions alone: what CapDec needs")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, xpu or mps")] = "auto",
) -> None:
    """Make CLIP features of training images and captions once, for ClipCap and CapDec."""
    from perdure.cli.data import stated
    from perdure.files.folders import require_file
    from perdure.prepare import captions
    from perdure.settings.config import Named

    require_file(out, setting="--out")
    key = "path" if data == "caption_texts" else "root"
    place = [f"{key}={json.dumps(str(root))}"] if root is not None else []
    dataset = Named(place="data", name=data, settings=stated(data, [*place, *(settings or [])])).build()
    only_texts = texts_only or data == "caption_texts"
    with libraries_aside():
        counts = captions.write_features(dataset, _clip(weights, device), out, images=not only_texts)
    cut = f" ({counts['cut']} captions were too long and were cut)" if counts["cut"] else ""
    print(f"{counts.get('images', 0)} images, {counts['captions']} captions{cut} -> {out}")


@app.command("clipscore", epilog=epilog(SCORED), context_settings=SETTINGS)
def clipscore(
    file: Annotated[Path, typer.Argument(help="saved predictions of a run: predictions/*.jsonl")],
    images: Annotated[Path, typer.Option("--images", help="folder that the records' ids start from")],
    weights: Annotated[str, typer.Option("--weights", help="CLIP")] = "openai/clip-vit-base-patch32",
    out: Annotated[Path | None, typer.Option("--out", help="records with the scores [beside FILE]")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, xpu or mps")] = "auto",
) -> None:
    """Add CLIPScore and RefCLIPScore to saved captions; then `perdure score` averages them."""
    from perdure.files.folders import require_file
    from perdure.prepare import captions

    target = out or file.with_suffix(".clipscore.jsonl")
    require_file(target, setting="--out")
    with libraries_aside():
        means = captions.score_file(file, images, _clip(weights, device), target)
    print("  ".join(f"{name} {value:.2f}" for name, value in means.items()) + f"  -> {target}")


@app.command("judge", epilog=epilog(JUDGED), context_settings=SETTINGS)
def judge(
    files: Annotated[list[Path], typer.Argument(help="saved answers of a run: predictions/*.jsonl", metavar="FILE...")],
    endpoint: Annotated[str, typer.Option("--endpoint", help="address of an OpenAI-compatible endpoint")] = "",
    model: Annotated[str, typer.Option("--model", help="the model's name at the endpoint")] = "",
    key_variable: Annotated[
        str, typer.Option("--key-variable", help="environment variable that holds the key")
    ] = "OPENAI_API_KEY",
    local: Annotated[str, typer.Option("--local", help="a chat model of transformers: hub id or folder")] = "",
    how: Annotated[
        How, typer.Option("--how", help="extract the answer for rules to compare, or compare it")
    ] = "extract",
    per_minute: Annotated[float | None, typer.Option("--per-minute", help="most requests a minute")] = None,
    parallel: Annotated[int, typer.Option("--parallel", help="requests under way at a time")] = 8,
    timeout: Annotated[float, typer.Option("--timeout", help="seconds to wait for a reply")] = 120.0,
) -> None:
    """Let a chat model read saved answers that no rule finds right; then `perdure score` averages the verdicts.

    The judged records lie beside each file, and the replies, from which a stopped command goes on.
    """
    from perdure.errors import RecipeError
    from perdure.files.folders import require_file
    from perdure.prepare import judge as judging

    chat = _chat(endpoint, model, key_variable, local, per_minute, parallel, timeout, temperature=0.0)
    if chat is None:
        todo = "Add --endpoint URL --model NAME, or --local FOLDER."
        raise RecipeError("there is no judge", where="perdure prepare judge", todo=todo)
    targets = [file.with_suffix(".judged.jsonl") for file in files]
    for target in targets:
        require_file(target, setting="--out")
    for file, target in zip(files, targets):
        with libraries_aside():
            found = judging.judge_file(file, target, chat, how=how)
        counted = f"{found['by_rule']} by rule, {found['asked']} asked about"
        print(f"judged_accuracy {found['judged_accuracy']:.2f}  ({counted})  -> {target}")


@app.command("coco-results", epilog=epilog(RESULTS), context_settings=SETTINGS)
def coco_results(
    file: Annotated[Path, typer.Argument(help="saved captions of a run: predictions/*.jsonl")],
    out: Annotated[Path, typer.Option("--out", help="folder of results.json and annotations.json")],
) -> None:
    """Write saved captions, and the reference captions beside them, as the COCO evaluation reads them."""
    from perdure.files.folders import require_folder
    from perdure.prepare import captions

    require_folder(out, setting="--out")
    with libraries_aside():
        written = captions.write_coco(file, out)
    for path in written:
        print(path)


def _clip(weights: str, device: str) -> Any:
    from perdure.models import clip
    from perdure.runtime import devices

    where = devices.chosen(device, where="--device")
    return clip.load(clip.Config(weights=weights)).to(where)


def _jobs(
    source: Path | None, root: Path | None, tasks: list[str], kind: str, share: float, out: Path | None
) -> list[tuple[str, str, Path, Path]]:
    """(task, kind, source, target) of each file."""
    from perdure.errors import RecipeError
    from perdure.prepare.styles import COIN_KINDS, KINDS
    from perdure.settings.suggestions import nearest

    if kind and kind not in KINDS:
        raise RecipeError(f"there is no kind {kind!r}", where="--kind", expected=", ".join(KINDS))
    name = f"train_x{share:g}.json"
    if source is not None:
        if not kind:
            raise RecipeError("--kind is needed for a file of your own", expected=", ".join(KINDS))
        return [(source.parent.name or source.stem, kind, source, out or source.with_name(name))]
    if root is None:
        raise RecipeError("give a training file and --kind, or CoIN's folder as --root")
    jobs = []
    for task in tasks or list(COIN_KINDS):
        if task not in COIN_KINDS:
            near = nearest(task, list(COIN_KINDS))
            hint = f"Did you mean {near}?" if near else ""
            raise RecipeError(f"CoIN has no task {task!r}", where="--task", expected=", ".join(COIN_KINDS), todo=hint)
        folder = root / "annotations" / task
        jobs.append((task, COIN_KINDS[task], _source(folder), out or folder / name))
    if out is not None and len(jobs) > 1:
        raise RecipeError("--out is for one file", where=str(out))
    return jobs


def _source(folder: Path) -> Path:
    """The unchanged training file: CoIN-ASD calls it train_ori.json."""
    original = folder / "train_ori.json"
    return original if original.is_file() else folder / "train.json"


def _chat(
    endpoint: str,
    model: str,
    key_variable: str,
    local: str,
    per_minute: float | None,
    parallel: int,
    timeout: float,
    temperature: float = 0.7,
) -> Any:
    from perdure.errors import RecipeError
    from perdure.prepare.chat import Endpoint
    from perdure.prepare.local import LocalChat

    if endpoint and local:
        raise RecipeError("give --endpoint or --local, not both")
    if local:
        return LocalChat(name=local)
    if not endpoint:
        if model:
            raise RecipeError("--model is the name at an endpoint", todo="Add --endpoint, or say --local FOLDER.")
        return None
    if not model:
        raise RecipeError("--model is needed with --endpoint")
    return Endpoint(
        base_url=endpoint,
        name=model,
        key_variable=key_variable,
        parallel=parallel,
        per_minute=per_minute,
        timeout=timeout,
        temperature=temperature,
    )


def _print(name: str, target: Path, manifest: dict[str, Any]) -> None:
    from perdure.errors import printable

    styles = ", ".join(f"{style} {n}" for style, n in manifest["styles"].items())
    print(f"{name}: {manifest['records']} records ({styles}) -> {target}")
    if unseen := manifest["by_model_unseen"]:
        print(f"  warning: {unseen} records with an image were rewritten by a model that was not shown it")
    if manifest["too_few"]:
        print(f"  {manifest['too_few']}")
    failed = manifest["failed"]
    for entry in failed[:10]:
        print(printable(f"  record {entry['record']} ({entry['id']}) stays as it is: {entry['why']}"))
    if len(failed) > 10:
        print(f"  ... and {len(failed) - 10} more in {target.with_suffix('.manifest.json')}")
