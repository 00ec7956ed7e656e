"""SEFE's golden vectors through the public code: every file is checked, or the test fails."""

from __future__ import annotations

import json
import math
import re
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_llava import PROJECTIONS, ReplayedRun
from recorded import load, prefixed

from perdure.families.instruction import sampler
from perdure.layers.low_rank import merged
from perdure.methods.sefe.key_elements import Elements, accumulate, key_elements, mean_magnitude
from perdure.metrics import continual, vqa, vqa_files
from perdure.metrics.vqa_text import normalize_answer
from perdure.models.llava import conversation, images
from perdure.models.llava.tokenizer import is_legacy, load_tokenizer

PATTERNS = (
    "README.md",
    "key_elements_f32*.npz",
    "key_elements_bf16*.npz",
    "reg_loss_f64*.npz",
    "two_task_run*.npz",
    "two_task_data/*",
    "tokenizer/*",
    "merge_fp16*.npz",
    "conversation_masks*.json",
    "sampler_*.npz",
    "image_pad*.npz",
    "evals/*",
    "metrics_handderived*.npz",
)


@pytest.fixture
def folder(golden) -> Path:
    return golden("sefe")


def files(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    assert found, f"no {pattern} in {folder}"
    return found


def test_every_file_has_a_check(folder):
    names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    assert [n for n in names if not any(fnmatch(n, pattern) for pattern in PATTERNS)] == []
    assert {p.name for p in (folder / "evals").iterdir()} <= set(vqa.SCORERS)


def test_key_elements_of_float32_updates_are_the_recorded_ones_in_order(folder):
    for file in files(folder, "key_elements_f32*.npz"):
        arrays = load(file)
        fraction, checked = float(arrays["meta.fraction"]), 0
        previous: dict[str, torch.Tensor] = {}
        for task, name, a, b in _updates(arrays):
            previous[name] = accumulate(key_elements(a, b, fraction=fraction), previous.get(name))
            assert torch.equal(previous[name], torch.tensor(arrays[f"t{task}.{name}.indices"])), (task, name)
            checked += 1
        assert checked == sum(n.endswith(".indices") for n in arrays)


def test_key_elements_of_bfloat16_updates_agree_above_the_cut(folder):
    for file in files(folder, "key_elements_bf16*.npz"):
        arrays = load(file)
        fraction, checked = float(arrays["meta.fraction"]), 0
        for task, name, a, b in _updates(arrays):
            ours = key_elements(a, b, fraction=fraction, dtype=torch.bfloat16)
            recorded = torch.tensor(arrays[f"t{task}.{name}.indices"])
            assert len(recorded) == (task + 1) * len(ours)
            product = (b.bfloat16() @ a.bfloat16()).float().abs()
            above = [product[i, j] > product[tuple(ours[-1])] for i, j in recorded[: len(ours)].tolist()]
            expected = {tuple(p) for p, keep in zip(recorded[: len(ours)].tolist(), above) if keep}
            found = {tuple(p) for p in ours.tolist() if product[tuple(p)] > product[tuple(ours[-1])]}
            assert found == expected, (task, name)
            checked += 1
        assert checked == sum(n.endswith(".indices") for n in arrays)


def test_penalty_and_its_gradients_are_the_recorded_ones(folder):
    for file in files(folder, "reg_loss_f64*.npz"):
        arrays = load(file)
        params = prefixed(arrays, "param.")
        names = [n.removeprefix("indices.") for n in arrays if n.startswith("indices.")]
        factors = {
            f"model.{n}.lora_{w}.weight": params[f"model.{n}.lora_{w}.weight"].clone().requires_grad_()
            for n in names
            for w in "AB"
        }
        values = []
        for n in names:
            a, b = (factors[f"model.{n}.lora_{w}.weight"] for w in "AB")
            pairs = torch.tensor(arrays[f"indices.{n}"])
            values.append(mean_magnitude(a, b, Elements.of(pairs, (len(b), a.shape[1]))))
        loss = torch.stack(values).sum() / 224
        loss.backward()
        assert loss.item() == pytest.approx(float(arrays["loss_reg_div224"]), abs=1e-12)
        recorded = prefixed(arrays, "grad_reg_div224.")
        assert {n for n in recorded if recorded[n].any()} <= set(factors)
        for name, factor in factors.items():
            torch.testing.assert_close(factor.grad, recorded[name], rtol=1e-10, atol=1e-12)


def test_total_loss_of_a_small_llama_is_the_recorded_one(folder):
    from golden_llava import llama_with_updates

    for file in files(folder, "reg_loss_f64*.npz"):
        arrays = load(file)
        model, factors = llama_with_updates(arrays)
        ids, labels, mask = (torch.tensor(arrays[n]) for n in ("input_ids", "labels", "attention_mask"))
        logits = model(input_ids=ids, attention_mask=mask).logits.float()
        np.testing.assert_allclose(logits.detach().numpy(), arrays["logits_float32"], atol=1e-5)
        ce = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        penalty = sum(
            mean_magnitude(a, b, Elements.of(torch.tensor(arrays[f"indices.{n}"]), (len(b), a.shape[1])))
            for n, (a, b) in factors.items()
        )
        total = ce + 2500 * penalty / 224
        total.backward()
        assert ce.item() == pytest.approx(float(arrays["ce_loss"]), rel=1e-5)
        assert total.item() == pytest.approx(float(arrays["total_loss"]), rel=1e-5)
        recorded, checked = prefixed(arrays, "grad_total."), 0
        for n, pair in factors.items():
            for which, factor in zip("AB", pair):
                torch.testing.assert_close(
                    factor.grad, recorded[f"model.{n}.lora_{which}.weight"], rtol=1e-4, atol=1e-5
                )
                checked += 1
        assert checked == sum("lora_" in n for n in recorded)


def test_float16_merge_is_the_recorded_one(folder):
    for file in files(folder, "merge_fp16*.npz"):
        arrays = load(file)
        final, expected, base = (
            prefixed(arrays, p) for p in ("task1.final.model.", "merged1_fp16.model.", "base.model.")
        )
        for name, target in expected.items():
            if "mm_projector" in name:
                assert torch.equal(final[name].half(), target)
                continue
            stem = name.removesuffix(".weight")
            a, b = (final[f"{stem}.lora_{w}.weight"] for w in "AB")
            ours = merged(base[name].half(), a, b, scale=2, dtype=torch.float16)
            assert ours.dtype == torch.float16
            ulps = (ours.view(torch.int16).int() - target.view(torch.int16).int()).abs()
            assert int(ulps.max()) <= 1, name


@pytest.mark.slow
def test_two_tasks_are_learned_as_recorded(folder):
    for file in files(folder, "two_task_run*.npz"):
        run = ReplayedRun(file, folder)
        for task in (1, 2):
            run.check_batches(task)
            run.check_start(task)
            run.learn(task)
            assert run.lr_after_each_step(task) == pytest.approx(run.recorded_lr(task), rel=1e-6, abs=1e-12)
            np.testing.assert_allclose(run.losses(), run.arrays[f"task{task}.loss"], atol=2e-4)
            np.testing.assert_allclose(
                run.penalties(), run.arrays[f"task{task}.loss_reg_unweighted"], rtol=1e-3, atol=1e-9
            )
            run.check_weights(task)
            run.check_elements(task)


def test_conversations_have_the_recorded_tokens_and_labels(folder):
    for file in files(folder, "conversation_masks*.json"):
        recorded = json.loads(file.read_text("utf-8"))
        tokenizers = _tokenizers(folder)
        for case in recorded["cases"]:
            name, limit = _limit(case["tokenizer"])
            encode, legacy = tokenizers[name]
            said = conversation.encode_conversation(
                case["conversations"], encode, has_image=case["has_image"], max_length=limit, legacy=legacy
            )
            where = (case["tokenizer"], case["case"])
            assert said.input_ids == case["input_ids"], where
            assert said.labels == case["labels"], where
            assert said.mismatch == case["warned_mismatch"], where
            shown = case["conversations"]
            shown = conversation.image_first(shown) if case["has_image"] else shown
            assert shown == case["after_multimodal"], where
            assert conversation.conversation_text(shown) == case["prompt"], where
        for question in recorded["inference"]:
            text = f"{conversation.IMAGE}\n{question['question']}"
            assert conversation.question_text(text) == question["prompt"]
            for key, name in (("byte_input_ids", "byte"), ("spm_input_ids", "spm_legacy_True")):
                encode, _ = tokenizers[name]
                ids = conversation.encode_question(question["question"], encode, has_image=True)
                assert ids == question[key]


def test_sampler_gives_the_recorded_orders(folder):
    for file in files(folder, "sampler_*.npz"):
        arrays = load(file)
        drawn = [arrays[f"perm{i}"].tolist() for i in range(sum(n.startswith("perm") for n in arrays))]
        batch, world, _ = arrays["batch_size_world_seed"].tolist()
        order = sampler.modality_grouped_order(
            arrays["lengths"].tolist(), lambda n, d=drawn: _of_length(d.pop(0), n), batch_size=batch, processes=world
        )
        assert order == arrays["order"].tolist() and not drawn, file.name


def test_images_are_padded_and_resized_as_recorded(folder):
    from PIL import Image

    for file in files(folder, "image_pad*.npz"):
        arrays = load(file)
        mean, std = arrays["mean"].tolist(), arrays["std"].tolist()
        names = [n.split(".")[0] for n in arrays if n.endswith(".rgb_uint8_hwc")]
        assert names
        for name in names:
            image = Image.fromarray(arrays[f"{name}.rgb_uint8_hwc"])
            square = np.asarray(images.pad_to_square(image, mean=mean))
            assert np.array_equal(square, arrays[f"{name}.expanded"])
            expected = arrays[f"{name}.pixel_values"]
            found = images.pixels(image, size=expected.shape[-1], mean=mean, std=std).numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_scorers_give_the_recorded_scores(folder):
    for case in files(folder, "evals/*"):
        task, expected = case.name, json.loads((case / "expected.json").read_text("utf-8"))
        predictions = vqa_files.read_predictions(case / "merge.jsonl")
        targets = vqa_files.read_annotations(_annotations(case), task)
        records = vqa_files.join(predictions, targets, task, official=True)
        scores = vqa.score_records(records, task, official=True)
        if "samples" in expected:
            assert scores["samples"] == expected["samples"]
            assert round(scores["accuracy"], 2) == pytest.approx(expected["accuracy_percent_2dp"], abs=1e-9)
        if expected.get("per_sample_percent"):
            values = [100 * v for v in vqa.record_values(records, task, official=True)]
            np.testing.assert_allclose(values, expected["per_sample_percent"], atol=1e-9)
        if task == "scienceqa":
            _check_scienceqa(scores, records, expected)
        if task == "gqa":
            _check_gqa(scores, records, expected)
        if task == "imagenet":
            _check_wrong_lines(records, expected)


def test_normaliser_gives_the_recorded_forms(folder):
    for file in files(folder, "evals/textvqa/normalisation*.json"):
        for raw, normal in json.loads(file.read_text("utf-8")):
            assert normalize_answer(raw, official=True) == normal


def test_continual_metrics_are_the_hand_derived_ones(folder):
    for file in files(folder, "metrics_handderived*.npz"):
        arrays = load(file)
        for convention, key in (("including_last", "BWT_coin"), ("excluding_last", "BWT_excluding_last")):
            ours = continual.sefe(arrays["A"], bwt=convention)
            recorded = {"MFT": arrays["MFT"], "MFN": arrays["MFN"], "MAA": arrays["MAA"], "BWT": arrays[key]}
            for name, value in recorded.items():
                found = math.nan if ours[name] is None else ours[name]
                assert found == pytest.approx(float(value), abs=1e-9, nan_ok=True), (file.name, name)


def _updates(arrays):
    """(task, matrix, A, B), tasks in order."""
    for task in range(int(arrays["meta.H_I_L_r_tasks"][4])):
        for layer in range(int(arrays["meta.H_I_L_r_tasks"][2])):
            for projection in PROJECTIONS:
                name = f"l{layer}.{projection}"
                a, b = (torch.tensor(arrays[f"t{task}.{name}.lora_{w}"]) for w in "AB")
                yield task, name, a, b


def _tokenizers(folder: Path):
    found = {"byte": (byte_encode, True)}
    for legacy in (True, False):
        tokenizer = load_tokenizer(folder / "tokenizer", legacy=legacy)
        assert is_legacy(tokenizer) == legacy
        found[f"spm_legacy_{legacy}"] = (lambda text, t=tokenizer: t(text).input_ids), legacy
    return found


def byte_encode(text: str) -> list[int]:
    """The recorded byte tokenizer: BOS 1, "</s>" 2, byte b is b + 3."""
    ids = [1]
    for i, part in enumerate(text.split("</s>")):
        ids += [2] * (i > 0) + [b + 3 for b in part.encode()]
    return ids


def _limit(name: str) -> tuple[str, int]:
    """``byte_max230`` is the byte tokenizer with at most 230 tokens."""
    found = re.fullmatch(r"(.*)_max(\d+)", name)
    return (found[1], int(found[2])) if found else (name, 2048)


def _of_length(permutation: list[int], n: int) -> list[int]:
    assert len(permutation) == n
    return permutation


def _annotations(case: Path) -> Path:
    special = {"scienceqa": case, "gqa": case / "testdev_balanced_questions.json"}
    return special.get(case.name, case / "annotations.json")


def _check_scienceqa(scores, records, expected) -> None:
    result, output = expected["output_result"], expected["output"]
    assert scores["accuracy"] == pytest.approx(result["acc"])
    assert (scores["correct"], scores["samples"]) == (result["correct"], result["count"])
    line = "Total: {}, Correct: {}, Accuracy: {:.2f}%, IMG-Accuracy: {:.2f}%"
    numbers = (scores["samples"], scores["correct"], scores["accuracy"], scores["image_accuracy"])
    assert line.format(*numbers) == expected["result_text"].strip()
    rows = {row["question_id"]: row for row in vqa.science_qa_rows(records)}
    assert {i: row["index"] for i, row in rows.items()} == result["results"]
    texts = {r["id"]: r["prediction"] or "FAILED" for r in records if r["target"] is not None}
    assert {i: t for i, t in texts.items() if i in result["outputs"]} == result["outputs"]
    for verdict in ("correct", "incorrect"):
        ours = [row for row in rows.values() if row["correct"] == (verdict == "correct")]
        assert [r["question_id"] for r in ours] == [r["question_id"] for r in output[verdict]]
        for row, theirs in zip(ours, output[verdict]):
            for key in ("parsed_ans", "ground_truth", "is_multimodal"):
                assert row[key] == theirs[key]


def _check_gqa(scores, records, expected) -> None:
    converted = {c["questionId"]: c["prediction"] for c in expected["converted"]}
    assert {r["id"]: r["prediction"].rstrip(".").lower() for r in records} == converted
    text = expected["stdout"]
    for name in ("Binary", "Open", "Accuracy"):
        assert f"{scores[name.lower()]:.2f}" == re.search(rf"^{name}: ([\d.]+)%", text, re.M)[1]
    assert f"{scores['distribution']:.2f}" == re.search(r"Distribution: ([\d.]+)", text)[1]
    headings = {
        "structural": "structural type",
        "semantic": "semantic type",
        "steps": "steps number",
        "words": "words number",
    }
    for key, heading in headings.items():
        block = text.split(f"Accuracy / {heading}:\n")[1].split("\n\n")[0]
        found = re.findall(r"^  (\S+): ([\d.]+)% \((\d+) questions\)", block, re.M)
        ours = {k: (f"{v['accuracy']:.2f}", str(v["samples"])) for k, v in scores[key].items()}
        assert ours == {k: (percent, n) for k, percent, n in found}


def _check_wrong_lines(records, expected) -> None:
    listed = json.loads(expected["result_text"][expected["result_text"].index("[") :])
    values = vqa.record_values(records, "imagenet", official=True)
    wrong = [(r["id"], r["prediction"], r["target"]) for r, v in zip(records, values) if not v]
    assert wrong == [(str(row["question_id"]), row["text"], row["ground_truth"]) for row in listed]
