"""What PHP costs here and under the plain schedule, in one process, with equal results.

    python benchmarks/php.py --sizes micro real

The plain schedule is written out in `php_plain.py`; ours is `perdure.methods.php` as it is. Weights are random (`real`
has the sizes of CLIP ViT-B/32 and of CLAP with HTSAT-tiny and RoBERTa), frames and sound are noise; only ratios are
of interest. Videos of ten seconds: a training step of two on 29 classes, a test forward of one (the published batches),
the evaluation of three tasks, and what comes before the first blocks, made or read from the cache (float16: the one
with another tolerance).

Knows both schedules and clocks. Does not know accuracy.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from compare import compare
from php_plain import plain
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import ClapConfig, ClapModel, CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from perdure.data import lists
from perdure.families.audio_visual import front_ends, learning, readout
from perdure.families.audio_visual.inputs import Problem, problem_of
from perdure.families.audio_visual.system import System
from perdure.methods.php import Config, Php
from perdure.models.clap import Clap
from perdure.models.clip import Clip
from perdure.models.clip import Tokenizer as ClipTokenizer
from perdure.models.clip.tokens import openai_encoder
from perdure.runtime import Runtime
from perdure.types import Example, Examples, Stream, Task

RESULTS = Path(__file__).parent / "results" / "php.json"
TARGETS = {"training step": 2.0, "test forward": 2.0}
"""Least ratio of times that is asked for."""
SIZES: dict[str, dict[str, Any]] = {
    "micro": {
        "vision": {"hidden_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4, "patch_size": 16},
        "image": 64,
        "text": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512},
        "audio": {"patch_embeds_hidden_size": 32, "hidden_size": 256, "num_attention_heads": [2, 4, 8, 8]},
        "roberta": {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384},
        "dim": 128,
        "repeats": 3,
    },
    "real": {
        "vision": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 32},
        "image": 224,
        "text": {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048},
        "audio": {},
        "roberta": {},
        "dim": 512,
        "repeats": 1,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["micro"])
    parser.add_argument("--only", nargs="*", help="some of the measurements, joined to what is there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    known = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    for size in chosen.sizes:
        known[size] = known.get(size, {}) | measure(size, chosen.only)
        print(json.dumps({size: known[size]}, indent=1))
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(known, indent=1) + "\n")


def measure(size: str, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Times of both schedules and the largest relative difference of their results; of `only` some, or of all."""
    facts = SIZES[size]
    PREDICTORS.clear()
    TEXTS.clear()
    method, stream = build(facts), three_tasks()
    runtime = Runtime(device="cpu", quiet=True)
    for task in stream:  # parts for every task, without training
        runtime.task = task.index
        problem = problem_of(task)
        method.tasks.begin(problem, runtime)
        method.tasks.finish(problem)
    first = stream.tasks[0]
    batch = torch.utils.data.default_collate([method.preprocess(first.test[0], False)])
    pair = torch.utils.data.default_collate([method.preprocess(example, True) for example in first.train])
    calls = {
        "training step": lambda how: training_step(method, first, pair, how),
        "test forward": lambda how: test_forward(method, stream, batch, how),
        "evaluation of three tasks": lambda how: evaluate_all(method, stream, how),
        "front ends, from files": Fronts(method),
    }
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "repeats": facts["repeats"]}
    for name in only or calls:
        call, results = calls[name], cast(dict[str, Tensor], {})

        def timed(how: str, call: Any = call, results: dict[str, Tensor] = results) -> None:
            results[how] = call(how)

        if name == "test forward":  # the predictor is made once a task, outside of the clock
            test_forward(method, stream, batch, "ours")
        values = compare(lambda: timed("plain"), lambda: timed("ours"), repeats=facts["repeats"])
        scale = results["plain"].abs().max().clamp_min(1e-12)
        values["largest relative difference"] = float((results["plain"] - results["ours"]).abs().max() / scale)
        values["target ratio"] = TARGETS.get(name)
        result[name] = values
    return result


def schedule(how: str) -> Any:
    return plain() if how == "plain" else nullcontext()


def training_step(method: Php, task: Task, batch: dict, how: str) -> Tensor:
    """Loss and gradients of a batch; the gradient of the static prompts is compared."""
    with schedule(how):
        problem = method.tasks.problems[task.name]
        parts = method.tasks.assemble(problem).train()
        texts = method.system.texts(problem) if how == "plain" else cached_texts(method, problem)
        out = learning.forward(method.system, problem, parts, method.insert, batch, texts=texts)
        readout.loss(problem, out, batch, method.system.readout)["loss"].backward()
    return parts["deep"].prompt.grad.flatten()


TEXTS: dict[int, Any] = {}


def cached_texts(method: Php, problem: Any) -> Any:
    """CLAP's texts are read once a task, before the first step."""
    if id(method) not in TEXTS:
        TEXTS[id(method)] = method.system.texts(problem)
    return TEXTS[id(method)]


PREDICTORS: dict[str, Any] = {}


def test_forward(method: Php, stream: Stream, batch: dict, how: str) -> Tensor:
    """One video through a predictor that is there already."""
    with schedule(how), torch.no_grad():
        if how not in PREDICTORS:
            PREDICTORS[how] = method.predictor(stream.query(stream.tasks[0], after=2))
        return PREDICTORS[how](batch).flatten()


def evaluate_all(method: Php, stream: Stream, how: str) -> Tensor:
    """Three tasks of one test video each, predictors included."""
    found = []
    with schedule(how), torch.no_grad():
        for task in stream:
            predict = method.predictor(stream.query(task, after=2))
            for example in task.test:
                batch = torch.utils.data.default_collate([method.preprocess(example, False)])
                scores = predict(batch)
                found.append((scores["scores"] if isinstance(scores, dict) else scores).flatten())
    return torch.cat(found)


class Fronts:
    """A video's JPEG frames and wave to what the first blocks take: made, or read from the cache's entry."""

    def __init__(self, method: Php) -> None:
        self.folder = Path(tempfile.mkdtemp())
        rng = np.random.default_rng(0)
        frames = [self.folder / f"{i}.jpg" for i in range(10)]
        for path in frames:
            Image.fromarray(rng.integers(0, 256, (256, 340, 3), dtype=np.uint8)).save(path)
        np.save(self.folder / "wave.npy", rng.normal(0, 0.1, 320_000).astype(np.float32))
        self.example = Example(id="video", inputs={"frames": frames, "wave": self.folder / "wave.npy"})
        own = {"clip": method.clip, "clap": method.audio}
        cached = System(**own, cache_gigabytes=1.0, cache_folder=self.folder / "cache")
        assert cached.cache is not None
        cached.cache.open(None)
        self.systems = {"plain": System(**own), "ours": cached}
        self("ours")

    def __call__(self, how: str) -> Tensor:
        system, problem = self.systems[how], Problem(name="any", kind="localize-events", candidates=("a", "b"))
        with schedule(how):
            batch = front_ends.collate([front_ends.preprocess(system, self.example, False)])
            frames, patches, _ = front_ends.embed(system, problem, batch)
        return torch.cat([frames.flatten() / frames.abs().max(), patches.flatten() / patches.abs().max()])


def three_tasks() -> Stream:
    """AVE, LLP and MUSIC-AVQA with their real class names, two training videos and one test video each."""
    names = lists.load("audio_visual.json")
    problems = (
        ("AVE", "localize-events", (*names["ave"], "background"), [0] * 10),
        ("LLP", "parse-video", tuple(names["llp"]), {"labels": [0, 3]}),
        ("AVQA", "answer", tuple(names["music_avqa__answers"]), {"answer": 0, "type": ["Audio", "Counting"]}),
    )
    tasks = []
    for index, (name, kind, candidates, target) in enumerate(problems):
        more = {"question": [9, 2, 3] + [0] * 11} if kind == "answer" else {}
        items = [video(f"{name}/{i}", target, more) for i in range(2)]
        facts = {"segments": 10, "vocabulary": names["music_avqa__words"] if more else []}
        parts = {"train": Examples.of(items), "test": Examples.of(items[:1])}
        tasks.append(Task(index=index, name=name, kind=kind, candidates=candidates, facts=facts, **parts))  # type: ignore
    return Stream(name="benchmark", tasks=tuple(tasks), shared_candidates=False, task_revealed=True)


def video(name: str, target: Any, more: dict) -> Example:
    rng = np.random.default_rng(list(name.encode()))
    frames = list(rng.integers(0, 256, (10, 224, 224, 3), dtype=np.uint8))
    wave = rng.normal(0, 0.1, 320_000).astype(np.float32)
    return Example(id=name, inputs={"frames": frames, "wave": wave, **more}, target=target)


def build(facts: dict[str, Any]) -> Php:
    torch.manual_seed(0)
    vision = {"intermediate_size": 4 * facts["vision"]["hidden_size"], "image_size": facts["image"]} | facts["vision"]
    text = facts["text"] | {"vocab_size": 49408, "projection_dim": facts["dim"], "eos_token_id": 49407}
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=facts["dim"])
    clip = Clip(CLIPModel(config), tokenizer=ClipTokenizer(openai_encoder(), context_length=77))
    audio = {"projection_dim": facts["dim"], "depths": [2, 2, 6, 2]} | facts["audio"]
    roberta = {"projection_dim": facts["dim"]} | facts["roberta"]
    clap_config = ClapConfig(audio_config=audio, text_config=roberta, projection_dim=facts["dim"])
    clap = Clap(ClapModel(clap_config), tokenizer=letters())
    method = Php(Config(), clip=clip, audio=clap)
    make = method.tasks.make

    def open_gates(problem: Any) -> Any:
        parts = make(problem)
        for name, parameter in parts.named_parameters():
            if "gate" in name:  # closed gates would hide differences
                parameter.data.fill_(0.3)
        return parts

    method.tasks.make = open_gates
    return method


def letters() -> PreTrainedTokenizerFast:
    """Four letters a token, about as many tokens as words have."""
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=512, **tokens)


if __name__ == "__main__":
    main()
