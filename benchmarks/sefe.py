"""What SEFE costs here and under the plain schedule, in one process, with equal results.

    python benchmarks/sefe.py --out benchmarks/results

The plain schedule is the published one: the penalty through the whole product of each pair of factors and a list of
int64 pairs; logits of every token; a black image for every text; answers one at a time. Penalty: matrices of a 7 B
Llama (4096 x 4096, 11008 x 4096, rank 128, 2 %), measured one by one and added up to 32 blocks, which is an
extrapolation and printed as such. Step and answers: a LLaVA of about 100 M random parameters; only ratios matter. The
step has the published 16 conversations a device, half of them with an image (as in ScienceQA; other tasks of CoIN show
one always), and the published shares: conversations are an eighth as long as with LLaVA's 576 image tokens, so that
rank 16 stands for 128, and the vocabulary is about as small a part of the model.

Knows both schedules, clocks and memory. Does not know accuracy.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import compare
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from perdure.families.instruction.settings import Tuning
from perdure.methods.sefe import Config, Sefe
from perdure.methods.sefe.key_elements import Elements, dense_mean_magnitude, mean_magnitude
from perdure.models.llava import Llava
from perdure.models.llava.assemble import put_together
from perdure.models.llava.conversation import SYSTEM
from perdure.runtime import Runtime
from perdure.types import Batch, Example

BLOCK = {(4096, 4096): 4, (11008, 4096): 2, (4096, 11008): 1}
"""(outputs, inputs) of a block's matrices in a 7 B Llama -> how many of them."""
RANK, FRACTION, BLOCKS = 128, 0.02, 32
STEP_RANK, ROWS, VOCABULARY = 16, 16, 4000


def penalty(tasks: int) -> dict[str, Any]:
    """Forward and backward at each 7 B shape, and both summed up over 32 blocks.

    Of some million entries of a product one may be 0 within rounding: its sign, and so its share of the gradients, is
    then either schedule's own. With the seed taken here there is none.
    """
    torch.manual_seed(0)
    shapes, total = {}, {"plain seconds": 0.0, "ours seconds": 0.0, "plain bytes": 0, "ours bytes": 0}
    for (outputs, inputs), count in BLOCK.items():
        a, b = torch.randn(RANK, inputs), torch.randn(outputs, RANK)
        chosen = [_random_pairs(outputs, inputs, seed) for seed in range(tasks)]
        pairs, elements = torch.cat(chosen), Elements.of(torch.cat(chosen), (outputs, inputs))
        plain = _backward(lambda x, y, p=pairs: dense_mean_magnitude(x, y, p), a, b)
        ours = _backward(lambda x, y, e=elements: mean_magnitude(x, y, e), a, b)
        worst = max(float((p - o).abs().max() / p.abs().max()) for p, o in zip(plain(), ours()))
        row = compare(plain, ours, repeats=7)
        row |= {
            "plain index bytes": pairs.numel() * 8,
            "ours index bytes": elements.stored_bytes,
            "largest relative difference": worst,
        }
        shapes[f"{outputs} x {inputs}"] = row
        for name in ("plain", "ours"):
            total[f"{name} seconds"] += row[f"{name} seconds"] * count * BLOCKS
            total[f"{name} bytes"] += row[f"{name} index bytes"] * count * BLOCKS
    total["time ratio"] = total["plain seconds"] / total["ours seconds"]
    total["memory ratio"] = total["ours bytes"] / total["plain bytes"]
    return {"tasks before": tasks, "shapes": shapes, "7B, extrapolated from one matrix of each shape": total}


def step(rows: int) -> dict[str, Any]:
    """A training step of the ~100 M LLaVA: half of the rows with an image, a penalty on one earlier task."""
    tuning = Tuning(rank=STEP_RANK, alpha=2 * STEP_RANK, dropout=0)
    method = Sefe(Config(tuning=tuning), llm=random_llava(VOCABULARY))
    runtime = Runtime(device="cpu", quiet=True)
    runtime.task = 0
    method.adapters.start(runtime)
    lists = {}
    for i, (name, m) in enumerate(method.adapters.matrices.items()):
        torch.nn.init.normal_(m.b, std=0.01, generator=torch.Generator().manual_seed(i))
        lists[name] = _random_pairs(*m.weight.shape, seed=i)
        method.elements[name] = Elements.of(lists[name], tuple(m.weight.shape))
    method.llm.projector.requires_grad_(True)
    batch = method.collate([method.preprocess(e, True) for e in _conversations(rows)])
    trained = [*method.adapters.parameters().values(), *method.llm.projector.parameters()]

    def run(loss: Callable[[], Tensor]) -> list[Tensor]:
        for parameter in trained:
            parameter.grad = None
        loss().backward()
        return [p.grad.clone() for p in trained]

    def ours() -> list[Tensor]:
        return run(lambda: method.loss(batch)["loss"])

    def plain() -> list[Tensor]:
        return run(lambda: plain_loss(method, batch, lists))

    worst = max(float((p - o).abs().max()) for p, o in zip(plain(), ours()))
    return {
        "rows": rows,
        "rank": STEP_RANK,
        **compare(plain, ours, repeats=3),
        "largest difference of a gradient": worst,
    }


def plain_loss(method: Sefe, batch: Batch, lists: dict[str, Tensor]) -> Tensor:
    """All logits, black images for texts (computed and left out), the dense penalty."""
    llava = method.llm
    features = llava.model.model.get_image_features(batch["pixel_values"].to(llava.dtype)).pooler_output
    embedded = llava.model.get_input_embeddings()(batch["input_ids"])
    patches = batch["input_ids"] == llava.image_token
    shown = torch.cat([f for f, has in zip(features, batch["has_image"].tolist()) if has])
    embedded = embedded.masked_scatter(patches[..., None], shown)
    hidden = llava.language_model(
        inputs_embeds=embedded, attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state
    logits = llava.model.lm_head(hidden).float()[:, :-1, : llava.vocabulary]
    answers = F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    matrices = method.adapters.matrices
    values = [dense_mean_magnitude(m.a, m.b, lists[n]) for n, m in matrices.items()]
    return answers + method.config.weight * torch.stack(values).mean()


def answers(questions: int, words: int) -> dict[str, Any]:
    """Greedy answers: transformers' own schedule one at a time, ours one at a time, ours sixteen together."""
    llava = random_llava()
    asked = [
        Example(id=str(i), inputs={"text": "Why " + "so " * (5 + 3 * i % 20) + "?", **_image(i)})
        for i in range(questions)
    ]
    batch = llava.collate([llava.preprocess(e, False) for e in asked])

    def together(size: int, new: int) -> list[str]:
        return llava.answerer(Tuning(max_new_tokens=new, generate_batch=size))(batch)

    schedules = {
        "plain, batch 1": lambda new: [plain_answer(llava, batch, i, new) for i in range(questions)],
        "ours, batch 1": lambda new: together(1, new),
        "ours, batch 16": lambda new: together(16, new),
    }
    result: dict[str, Any] = {"questions": questions, "prompt tokens": int(batch["attention_mask"].sum()) // questions}
    texts = {}
    for name, schedule in schedules.items():
        schedule(1)
        first, _ = _seconds(lambda s=schedule: s(1))
        whole, texts[name] = _seconds(lambda s=schedule: s(words))
        result[name] = {
            "tokens a second": questions * words / whole,
            "milliseconds an answer's first token": 1e3 * first / questions,
            "milliseconds a later token": 1e3 * (whole - first) / (words - 1) / questions,
        }
    rates = {name: result[name]["tokens a second"] for name in schedules}
    result["new tokens"] = words
    result["ratio of ours at 16 to plain at 1"] = rates["ours, batch 16"] / rates["plain, batch 1"]
    result["ratio of ours at 16 to ours at 1"] = rates["ours, batch 16"] / rates["ours, batch 1"]
    plain = texts["plain, batch 1"]
    result["equal texts"] = {name: sum(a == b for a, b in zip(plain, found)) for name, found in texts.items()}
    return result


def plain_answer(llava: Llava, batch: Batch, row: int, words: int) -> str:
    """One question through transformers' `generate` as it comes."""
    length = int(batch["attention_mask"][row].sum())
    out = llava.model.generate(
        input_ids=batch["input_ids"][row : row + 1, -length:],
        attention_mask=batch["attention_mask"][row : row + 1, -length:],
        pixel_values=batch["pixel_values"][row : row + 1],
        max_new_tokens=words,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=llava.tokenizer.eos_token_id,
        suppress_tokens=[llava.image_token],
    )
    return llava.tokenizer.decode(out[0, length:], skip_special_tokens=True).strip()


def _seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of a call, and what it gave."""
    began = time.process_time()
    found = call()
    return time.process_time() - began, found


def random_llava(vocabulary: int = 16000) -> Llava:
    """About 100 M parameters."""
    torch.manual_seed(0)
    decoder = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=10,
            num_attention_heads=12,
            num_key_value_heads=12,
            vocab_size=vocabulary,
            max_position_embeddings=2048,
        )
    )
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=4,
            image_size=112,
            patch_size=16,
        )
    )
    return Llava(put_together(decoder, tower), word_tokenizer(vocabulary))


def word_tokenizer(size: int) -> Any:
    """Whole words are tokens, so that prompts are about as long as with a real vocabulary."""
    words = [*SYSTEM.split(), *["USER:", "ASSISTANT:", "Why", "so", "What", "is", "it?", "a", "dog", "?"]]
    words = list(dict.fromkeys(["<unk>", "<s>", "</s>", *words]))
    words += [f"word{i}" for i in range(size - len(words))]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    # a random model should not stop early: the end is a word that it does not say
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _conversations(rows: int) -> list[Example]:
    made = []
    for i in range(rows):
        shown = _image(i) if i % 2 else {}
        said = [
            {"from": "human", "value": ("<image>\n" if shown else "") + "What is it?"},
            {"from": "gpt", "value": "a dog"},
        ]
        made.append(Example(id=str(i), inputs={"conversations": said, **shown}))
    return made


def _image(seed: int) -> dict[str, Any]:
    return {"image": np.random.default_rng(seed).integers(0, 255, (112, 112, 3), dtype=np.uint8)}


def _random_pairs(outputs: int, inputs: int, seed: int) -> Tensor:
    count = int(FRACTION * outputs * inputs)
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm(outputs * inputs, generator=generator)[:count]
    return torch.stack([flat // inputs, flat % inputs], 1)


def _backward(function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Callable[[], list[Tensor]]:
    def call() -> list[Tensor]:
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        function(x, y).backward()
        return [x.grad, y.grad]

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--only", nargs="*", help="some of the measurements, joined to what is there")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    file = given.out / "sefe.json"
    results: dict[str, Any] = json.loads(file.read_text()) if given.only and file.exists() else {}
    results |= {"threads": given.threads, "torch": torch.__version__}
    for name, measure in (
        ("penalty after one task", lambda: penalty(1)),
        ("penalty after three tasks", lambda: penalty(3)),
        ("penalty after seven tasks", lambda: penalty(7)),
        ("step", lambda: step(ROWS)),
        ("answers", lambda: answers(given.questions, 64)),
    ):
        if given.only and name not in given.only:
            continue
        results[name] = measure()
        print(name, json.dumps(results[name], indent=1), flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
