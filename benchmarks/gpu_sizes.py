"""The part `sizes` of `gpu.py`: real sizes with random weights, ours, the plain schedule and the bare PyTorch step.

Models and plain schedules are those of the other benchmarks. Plain schedules make their tensors on the device by
`torch.device` as a context. Knows how each is called on a device. Does not know clocks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import mg_clip
import php
import replay
import rlcf
import rlcf_caption
import rlcf_retrieval
import sefe
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from perdure.families.instruction.settings import Tuning
from perdure.families.test_time import objectives
from perdure.families.test_time.retrieval import QueryTuner
from perdure.layers import lora
from perdure.loading import to_device
from perdure.methods.mg_clip import Config as MgClipConfig
from perdure.methods.mg_clip import MgClip
from perdure.methods.sefe.key_elements import Elements, dense_mean_magnitude, mean_magnitude
from perdure.models.llava import Llava
from perdure.models.llava.assemble import put_together
from perdure.runtime import Runtime
from perdure.runtime.placing import place
from perdure.types import Example, Examples, Query, Task

if TYPE_CHECKING:
    from gpu import Bench, Row

Measure = tuple[str, Callable[[], "Row"]]


def sizes(bench: Bench) -> Iterator[Measure]:
    """All rows, by worth; a builder runs when its first row is measured."""
    for part in (clip_steps, episodes, language, queries, captions, rehearsal_steps, audio_visual):
        yield from part(bench)
        if bench.cuda:
            torch.cuda.empty_cache()


def _runtime(bench: Bench, **settings: Any) -> Runtime:
    runtime = Runtime(device=str(bench.device), quiet=True, **settings)
    runtime.task = 0
    return runtime


def clip_steps(bench: Bench) -> Iterator[Measure]:
    """MG-CLIP: a training step of 128 images with 100 classes seen, and evaluation."""
    batch, seen = (8, 20) if bench.quick else (128, 100)

    @cache
    def made() -> tuple[Any, ...]:
        torch.manual_seed(0)
        clip = mg_clip.random_clip(mg_clip.SIZES["micro" if bench.quick else "base"], torch.float32)
        method = MgClip(MgClipConfig(epochs=1, batch_size=batch), clip=clip)
        place(method, runtime := _runtime(bench))
        names = list(rlcf.names(False)[:seen])
        pixels = torch.randint(256, (batch, 3, clip.image_size, clip.image_size), dtype=torch.uint8)
        made = [Example(id=str(i), inputs={"image": p}, target=seen - 10 + i % 10) for i, p in enumerate(pixels)]
        method.preprocess = lambda e, _: {"image": e.inputs["image"], "label": e.target}
        task = Task(
            index=0,
            name="t",
            kind="classify",
            candidates=tuple(names[-10:]),
            offset=seen - 10,
            train=Examples.of(made),
        )
        method.classes, method.rows = names[:-10], F.normalize(torch.randn(seen - 10, clip.dim), dim=1).to(clip.device)
        return clip, method, runtime, names, task, pixels.to(bench.device)

    def step(texts: bool) -> None:
        clip, _, _, names, _, pixels = made()
        parameters = list(lora.lora_parameters(clip.model).values())
        optimizer = torch.optim.Adam(parameters, lr=1e-3)
        image = F.normalize(clip.model.get_image_features(clip.transform.normalize(pixels)).pooler_output, dim=1)
        ids = clip.tokenize([f"a good photo of a {name}." for name in names]).to(bench.device)
        text = F.normalize(clip.model.get_text_features(ids).pooler_output, dim=1) if texts else image.detach()
        labels = torch.arange(len(pixels), device=bench.device) % 10
        F.cross_entropy((clip.scale * image @ text.T)[:, -10:], labels).backward()
        optimizer.step()

    def ours() -> None:
        _, method, runtime, names, task, _ = made()
        method.fit_lora(task, names, 1, "lora", runtime)

    def evaluation() -> None:
        clip, method, _, names, _, pixels = made()
        method.classes, method.rows = names, torch.ones(len(names), clip.dim, device=bench.device)
        with torch.no_grad():
            method.predictor(Query(kind="classify", candidates=tuple(names)))({"image": pixels})

    what = f"MG-CLIP, {'micro' if bench.quick else 'ViT-B/16'}, batch {batch}, {seen} classes"
    yield f"{what}: step, ours", lambda: bench.measure(ours, units=batch)
    yield f"{what}: step, plain", lambda: bench.measure(lambda: step(True), units=batch)
    yield f"{what}: step, bare image tower", lambda: bench.measure(lambda: step(False), units=batch)
    yield f"{what}: evaluation with its predictor, ours", lambda: bench.measure(evaluation, units=batch)


def episodes(bench: Bench) -> Iterator[Measure]:
    """RLCF: encoder and prompt episodes, several images at once."""
    plain = {"encoder": rlcf.plain_encoder, "prompt": rlcf.plain_prompt}

    @cache
    def clips() -> tuple[Any, Any]:
        return tuple(rlcf.random_clip(seed, tiny=bench.quick).to(bench.device) for seed in (0, 1))

    def ours(what: str, classes: int, at_once: int) -> Callable[[], Any]:
        asked = argparse.Namespace(what=what, tune="all")
        method = rlcf.make(asked, *clips(), at_once)
        place(method, _runtime(bench))
        batch = {name: v.to(bench.device) for name, v in rlcf.images(method, at_once).items()}
        predict = method.predictor(Query(kind="classify", candidates=rlcf.names(False)[:classes]))
        return lambda: predict(batch)

    def by_plain(what: str, classes: int) -> Callable[[], Any]:
        method = rlcf.make(argparse.Namespace(what=what, tune="all"), *clips(), 1)
        views = clips()[0].transform.normalize(rlcf.images(method, 1)["views"].to(bench.device))

        schedule = plain[what](*clips(), rlcf.names(False)[:classes])
        return lambda: schedule(views)

    for what in plain:
        for classes in (5,) if bench.quick else (50, 1000):
            for n in (1, 2) if bench.quick else (1, 8, 32):
                yield (
                    f"RLCF {what}, {classes} classes, {n} images at once: ours",
                    lambda w=what, c=classes, n=n: bench.measure(ours(w, c, n), units=n),
                )
            yield (
                f"RLCF {what}, {classes} classes: plain",
                lambda w=what, c=classes: bench.measure(by_plain(w, c), units=1),
            )


def queries(bench: Bench) -> Iterator[Measure]:
    """Retrieval: an image query's episode."""
    count, gallery = (1, 8) if bench.quick else (4, 1000)
    asked, steps = argparse.Namespace(query="image", samples=4 if bench.quick else 12), rlcf_retrieval.STEPS

    @cache
    def made() -> tuple[Any, ...]:
        torch.manual_seed(0)
        clip = rlcf.random_clip(0, tiny=bench.quick).to(bench.device)
        pixels = torch.randn(count, 3, clip.image_size, clip.image_size, device=bench.device)
        ids = clip.tokenize([f"a photo of a {name}" for name in rlcf.names(False)[:gallery]]).to(bench.device)
        return clip, pixels, ids, torch.rand(count, len(ids), device=bench.device)

    def ours() -> Callable[[], Any]:
        clip, pixels, ids, table = made()
        tuner, settings = QueryTuner(clip, ids, steps, query="image"), objectives.Reinforce(samples=asked.samples)
        each = [(item[None], objectives.reinforce(row[None, None], settings)) for item, row in zip(pixels, table)]
        return lambda: [tuner.logits(item, objective) for item, objective in each]

    def plain() -> Callable[[], Any]:
        clip, pixels, ids, table = made()
        schedule = rlcf_retrieval.plain_schedule(clip, asked, ids, steps)
        return lambda: schedule(pixels, table)

    def bare() -> Callable[[], Any]:
        return lambda: rlcf_retrieval.bare_steps(made()[0], asked, made()[1], steps)

    for name, make in {"ours": ours, "plain": plain, "bare": bare}.items():
        yield f"RLCF retrieval, image queries: {name}", lambda m=make: bench.measure(m(), units=count)


def captions(bench: Bench) -> Iterator[Measure]:
    """Captions: an image's episode."""
    sampling = rlcf_caption.Sampling(samples=2 if bench.quick else 6, most=4 if bench.quick else 12)
    steps = rlcf_caption.Steps(count=1 if bench.quick else 4, lr=2e-6, weight_decay=0.0, eps=1e-6)

    @cache
    def made() -> tuple[Any, Tensor]:
        torch.manual_seed(0)
        features = F.normalize(torch.randn(1, 512), dim=-1).to(bench.device)
        return rlcf_caption.captioner(tiny=bench.quick).to(bench.device), features

    def ours() -> None:
        rlcf_caption.CaptionTuner(made()[0], rlcf_caption.Lengths(), steps, sampling).caption(made()[1], [])

    def plain() -> None:
        with torch.device(bench.device):
            rlcf_caption.plain_schedule(*made(), steps, sampling)

    for name, call in {"ours": ours, "plain": plain}.items():
        yield f"RLCF caption: {name}", lambda c=call: bench.measure(c, units=1)


def language(bench: Bench) -> Iterator[Measure]:
    """LLaVA of 7 B parameters in bf16: LoRA step, RegLoRA penalty, answers."""
    rows, words = (2, 2) if bench.quick else (16, 32)

    @cache
    def made() -> tuple[Any, Any, Any]:
        method = sefe.Sefe(sefe.Config(tuning=Tuning(rank=8 if bench.quick else 128)), llm=llava(bench))
        place(method, runtime := _runtime(bench))
        method.adapters.start(runtime)
        batch = method.collate([method.preprocess(e, True) for e in sefe._conversations(rows)])
        return method, runtime, to_device(batch, bench.device)

    def step() -> None:
        method, _, batch = made()
        trained = list(method.adapters.parameters().values())
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=bench.cuda)
        method.loss(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    @cache
    def questions() -> Any:
        llm = made()[0].llm
        asked = [Example(id=str(i), inputs={"text": "Why so?", **sefe._image(i)}) for i in range(rows)]
        return to_device(llm.collate([llm.preprocess(e, False) for e in asked]), bench.device)

    def answer(size: int) -> None:
        made()[0].llm.answerer(Tuning(max_new_tokens=words, generate_batch=size))(questions())

    def plain_answers() -> None:
        for row in range(rows):
            sefe.plain_answer(made()[0].llm, questions(), row, words)

    def tokens() -> int:
        return int(made()[2]["attention_mask"].sum())

    name = f"LLaVA {'tiny' if bench.quick else '7 B'}, bf16"
    yield f"{name}: LoRA step of {rows}, ours", lambda: bench.measure(step, units=tokens(), bf16=True)
    for size in (1, rows):
        yield (
            f"{name}: answers {size} at once, ours",
            lambda s=size: bench.measure(lambda: answer(s), units=rows * words),
        )
    yield f"{name}: answers one by one, plain", lambda: bench.measure(plain_answers, units=rows * words)
    for tasks in (1, 3, 7):
        for how, function in (("ours", mean_magnitude), ("plain", dense_mean_magnitude)):
            yield (
                f"RegLoRA penalty of a block's matrices, {tasks} earlier tasks: {how}",
                lambda t=tasks, h=how, f=function: bench.measure(penalty(bench, t, h, f), units=1),
            )


def penalty(bench: Bench, tasks: int, how: str, function: Callable[..., Tensor]) -> Callable[[], None]:
    """Forward and backward at each shape of a 7 B Llama once."""
    shapes = {(64, 32): 1} if bench.quick else sefe.BLOCK
    calls = []
    for outputs, inputs in shapes:
        count, at = int(sefe.FRACTION * outputs * inputs), bench.device
        flat = torch.cat([torch.randperm(outputs * inputs, device=at)[:count] for _ in range(tasks)])
        pairs = torch.stack([flat // inputs, flat % inputs], 1)
        chosen = pairs if how == "plain" else Elements.of(pairs.cpu(), (outputs, inputs)).to(at)
        a, b = torch.randn(sefe.RANK, inputs, device=at), torch.randn(outputs, sefe.RANK, device=at)
        calls.append(sefe._backward(lambda x, y, c=chosen: function(x, y, c), a, b))
    return lambda: [call() for call in calls] and None


def llava(bench: Bench) -> Llava:
    """Random weights, made on the device in bf16."""
    big = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    tower = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    eye = {"image_size": 336, "patch_size": 14}
    if bench.quick:
        big = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        tower, eye = big, {"image_size": 32, "patch_size": 16}
    vocabulary = 16000
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(bench.device):
            decoder = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=4096, **big))
            model = put_together(decoder, CLIPVisionModel(CLIPVisionConfig(**tower, **eye)))
    finally:
        torch.set_default_dtype(before)
    return Llava(model, sefe.word_tokenizer(vocabulary))


def rehearsal_steps(bench: Bench) -> Iterator[Measure]:
    """DER++ on ResNet-18 and Dynamos on its gated network, steps of 32 images."""
    count = 1 if bench.quick else 20
    images = replay.BATCH * count
    nets = {"derpp": replay.NETS["ResNet-18 nf=20"], "dynamos": lambda: replay.gated_resnet.load(_gated())}

    def ours(name: str) -> Callable[[], None]:
        method, runtime, task = replay.make_method(name, nets[name]()), _runtime(bench), replay.make_task(images)
        place(method, runtime)
        return lambda: method.learn(task, runtime)

    def plain(name: str) -> Callable[[], None]:
        net, task = nets[name]().to(bench.device), replay.make_task(images)
        net.register_forward_pre_hook(lambda _, args: (args[0].to(bench.device), *args[1:]))
        schedule = replay.Plain(name, net)

        def call() -> None:
            with torch.device(bench.device):
                schedule.learn(task)

        return call

    def bare(name: str) -> Callable[[], None]:
        steps = replay.Bare(name, nets[name]().to(bench.device))
        steps.fill(replay.make_task(images))
        steps.x, steps.y, steps.logits = (t.to(bench.device) for t in (steps.x, steps.y, steps.logits))
        return lambda: steps.steps(count)

    for name, schedules in {"derpp": (ours, plain, bare), "dynamos": (ours,)}.items():
        for make in schedules:
            yield f"{name}: {make.__name__}", lambda m=make, n=name: bench.measure(m(n), units=images)


def _gated() -> Any:
    return replay.gated_resnet.Config(seed=0)


def audio_visual(bench: Bench) -> Iterator[Measure]:
    """PHP: a training step of one video."""

    @cache
    def made() -> tuple[Any, Any, Any]:
        facts = php.SIZES["micro" if bench.quick else "real"]
        method, stream, runtime = php.build(facts), php.three_tasks(), _runtime(bench)
        place(method, runtime)
        for task in stream:
            runtime.task = task.index
            problem = php.problem_of(task)
            method.tasks.begin(problem, runtime)
            method.tasks.finish(problem)
        batch = torch.utils.data.default_collate([method.preprocess(stream.tasks[0].train[0], True)])
        return (
            method,
            stream.tasks[0],
            {n: v.to(bench.device) if isinstance(v, Tensor) else v for n, v in batch.items()},
        )

    for how in ("ours",) if bench.quick else ("ours", "plain"):
        yield f"PHP step, one video: {how}", lambda h=how: bench.measure(lambda: php.training_step(*made(), h), units=1)
