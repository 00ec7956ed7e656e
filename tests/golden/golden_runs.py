"""A Dynamos step, whole runs, the memory and the metrics against the published code (float64)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from golden_gates import check_gradients, close, gated_net
from recorded import Recorded, StoredOrder, load, prefixed, tensor_task

from perdure.evaluate import Evaluation
from perdure.families.rehearsal.buffer import Memory
from perdure.loop import run as go
from perdure.methods.dynamos import Config, Dynamos
from perdure.metrics import classification, continual
from perdure.types import Example, Query, Stream

LOSSES = {
    "CE_curr": "cross_entropy",
    "Rwd_curr": "policy",
    "Prototype_loss": "prototype",
    "Logits_buff": "replayed_logits",
    "Logits_Policy_buff": "replayed_policy_logits",
    "CE_buff": "replayed_cross_entropy",
    "Rwd_buff": "replayed_policy",
    "Buf_Prototype_loss": "replayed_prototype",
    "Total_loss": "loss",
}
"""Column of the official log -> ours. Where the official term is absent (NaN), ours is absent or 0."""


def config(a: dict, **others) -> Config:
    """The file's hyper-parameters, in parity mode."""
    hp = {n.removeprefix("hp."): v.item() for n, v in a.items() if n.startswith("hp.")}
    return Config(
        lr=hp["lr"],
        minibatch_size=hp["minibatch_size"],
        buffer_size=hp["buffer_size"],
        alpha=hp["alpha"],
        beta=hp["beta"],
        policy_alpha=hp["policy_alpha"],
        policy_penalty=hp["policy_penalty"],
        reward_weight=hp["reward_weight"],
        prototype_weight=hp["prototype_loss"],
        keep_ratio=hp["keep_ratio"],
        replay_unfilled_slots=True,
        **others,
    )


def step(file: Path) -> None:
    a = load(file)
    method = Dynamos(config(a, batch_size=len(a["x"]), warmup=0), net=gated_net(a, classes=int(a["n_classes"])))
    restore(method.memory, a)
    method.draws = Recorded(
        {"gates": [a["uniforms_current"]], "replay gates": [a["uniforms_buffer"]]},
        {"replay": [a["buffer_choice"]]},
        (a["reservoir_high"], a["reservoir_draw"]),
    )
    runtime = StoredOrder()
    method.learn(tensor_task(a["x"], a["labels"], classes=int(a["n_classes"])), runtime)
    assert method.draws.left() == 0
    check_losses(runtime.values[0], {n: a[f"loss.{n}"] for n in LOSSES}, rtol=1e-8)
    check_gradients(method.net, a)
    for name, value in prefixed(a, "after.").items():
        close(method.net.state_dict()[name], value, name)
    check_memory(method.memory, a)
    check_middle(a)


def check_middle(a: dict) -> None:
    """What lies between images and losses, current and replayed."""
    net = gated_net(a, classes=int(a["n_classes"])).train()
    drawn = a["buffer_choice"]
    passes = {
        "current": (a["x"], a["uniforms_current"], a["labels"]),
        "buffer": (a["buf_before.examples"][drawn], a["uniforms_buffer"], a["buf_before.labels"][drawn]),
    }
    for name, (x, uniforms, labels) in passes.items():
        out = net.gated(torch.tensor(x), uniforms=torch.tensor(uniforms))
        mid = prefixed(a, f"mid.{name}.")
        close(out.logits, mid["outputs"])
        close(out.actions, mid["actions"], exact=True)
        close(out.policy, mid["policy_logits"])
        close(out.log_probs, mid["log_probs"])
        from perdure.families.rehearsal import policy

        rewards = policy.keep_rewards(
            out.actions,
            policy.is_correct(out.logits, torch.tensor(labels)),
            boundaries=net.boundaries,
            keep_ratio=float(a["hp.keep_ratio"]),
            penalty=float(a["hp.policy_penalty"]),
        )
        close(rewards, mid["rewards"])


def run(file: Path) -> None:
    a = load(file)
    classes, each = int(a["n_classes"]), int(a["classes_per_task"])
    tasks = classes // each
    method = Dynamos(
        config(a, batch_size=int(a["batch_size"]), warmup=10, threshold=float(a["hp.inf_thresh"])),
        net=gated_net(a, classes=classes),
    )
    warm, losses = a["warmup"], a["losses"]
    replayed = ~np.isnan(losses[:, list(LOSSES).index("CE_buff")])
    method.draws = Recorded(
        {
            "gates": a["uniforms_current"][~warm],
            "replay gates": [u[~np.isnan(u[:, 0])] for u in a["uniforms_buffer"][replayed]],
        },
        {"replay": a["buffer_choice"]},
        (a["reservoir_high"], a["reservoir_draw"]),
    )
    stream = Stream(
        name="golden",
        scope="all",
        tasks=tuple(
            tensor_task(
                a[f"task{t}.train_x"],
                a[f"task{t}.train_y"],
                index=t,
                classes=each,
                offset=t * each,
                test=(a[f"task{t}.test_x"], a[f"task{t}.test_y"]),
            )
            for t in range(tasks)
        ),
    )
    for revealed, kind in ((False, "class_il"), (True, "task_il")):
        if revealed:  # the same run again, its logits masked at test
            method = again(method, a, classes)
        runtime = StoredOrder()
        asked = Stream(name="golden", tasks=stream.tasks, scope="all", task_revealed=revealed)
        before = Before(method, asked, kind, a)
        scores = go(method, asked, runtime=runtime, evaluation=Evaluation(plan="seen+next", batch_size=8))
        before.check()
        matrix = np.array(scores.matrix()[0], dtype=float)
        np.testing.assert_allclose(matrix, a[f"acc_{kind}"], rtol=1e-9)
        found = continual.dynamos(matrix, initial=a[f"random_{kind}"])
        for name in ("bwt", "forgetting", "fwt"):
            np.testing.assert_allclose(found[name], a[f"{name}_{kind}"], rtol=1e-9, atol=1e-9)
        assert method.draws.left() == 0
        assert len(runtime.values) == len(losses)
        for values, expected in zip(runtime.values, losses):
            check_losses(values, dict(zip(LOSSES, expected)), rtol=1e-5)
    check_memory(method.memory, a, rtol=1e-5, atol=1e-6)
    for name, value in prefixed(a, "after.").items():
        close(method.net.state_dict()[name], value, name, rtol=1e-5, atol=1e-7)
    method.net.eval()
    for t in range(tasks):
        out = method.infer(torch.tensor(a[f"task{t}.test_x"]).double())
        close(out.logits, a[f"task{t}.final_eval_logits"], rtol=1e-5, atol=1e-7)
        close(out.actions, a[f"task{t}.final_eval_actions"], exact=True)


def again(method: Dynamos, a: dict, classes: int) -> Dynamos:
    """A fresh method with the same settings and the same draws."""
    fresh = Dynamos(method.config, net=gated_net(a, classes=classes))
    warm = a["warmup"]
    replayed = ~np.isnan(a["losses"][:, list(LOSSES).index("CE_buff")])
    fresh.draws = Recorded(
        {
            "gates": a["uniforms_current"][~warm],
            "replay gates": [u[~np.isnan(u[:, 0])] for u in a["uniforms_buffer"][replayed]],
        },
        {"replay": a["buffer_choice"]},
        (a["reservoir_high"], a["reservoir_draw"]),
    )
    return fresh


class Before:
    """Accuracy at initialization, on all tasks (in warm-up mode)."""

    def __init__(self, method: Dynamos, stream: Stream, kind: str, a: dict) -> None:
        self.expected = a[f"random_{kind}"]
        self.found = []
        for task in stream:
            query = stream.query(task, after=-1)
            images = torch.stack([e.inputs["image"] for e in task.test])
            with torch.no_grad():
                scores = method.predictor(query)({"image": images})
            self.found.append(classification.accuracy(classification.records(scores, list(task.test), query)))

    def check(self) -> None:
        np.testing.assert_allclose(self.found, self.expected, rtol=1e-9)


def metrics(file: Path) -> None:
    a = load(file)
    found = continual.dynamos(a["acc"], initial=a["random"])
    for name in ("bwt", "forgetting", "fwt"):
        np.testing.assert_allclose(found[name], a[name], rtol=1e-9, atol=1e-9)


def masking(file: Path) -> None:
    """Class-IL asks among all classes, task-IL among the task's own."""
    a = load(file)
    each, total = int(a["classes_per_task"]), a["task0.logits"].shape[1]
    for t in range(total // each):
        logits, labels = a[f"task{t}.logits"], a[f"task{t}.labels"]
        examples = [Example(id=str(i), inputs={}, target=int(label)) for i, label in enumerate(labels)]
        queries = {
            "class_il": Query(kind="classify", candidates=tuple(map(str, range(total)))),
            "task_il": Query(kind="classify", candidates=tuple("ab"[:1] * each), offset=t * each, task=str(t)),
        }
        for kind, query in queries.items():
            scores = logits[:, query.offset : query.offset + len(query.candidates)]
            found = classification.accuracy(classification.records(scores, examples, query))
            np.testing.assert_allclose(found, a[kind][t], rtol=1e-9)


def reservoir(file: Path) -> None:
    a = load(file)
    labels, logits = torch.tensor(a["labels"]), torch.tensor(a["logits"])
    ids, size = torch.arange(1, len(labels) + 1, dtype=torch.float64), int(a["batch_size"])
    for kind in ("plain", "if_correct"):
        memory = Memory(int(a["capacity"]), replay_unfilled_slots=True)
        draws = Recorded(choices={"replay": [a[f"{kind}.choice"]]}, reservoir=(a["draw_high"], a["draw"]))
        for i in range(0, len(labels), size):
            part = slice(i, i + size)
            correct = logits[part].argmax(dim=1) == labels[part]
            memory.add(
                {"id": ids[part], "label": labels[part]},
                draws,
                among=correct if kind == "if_correct" else None,
            )
        close(memory.columns["id"], a[f"{kind}.ids_plus1"].reshape(-1), exact=True)
        close(memory.columns["label"], a[f"{kind}.labels"], exact=True)
        assert memory.seen == int(a[f"{kind}.num_seen"])
        drawn = memory.draw(len(a[f"{kind}.choice"]), draws)
        assert drawn is not None
        close(drawn["id"], a[f"{kind}.get_ids_plus1"].reshape(-1), exact=True)
        assert draws.left() == 0
    check_inclusion(a)


def check_inclusion(a: dict) -> None:
    """How often each stream position is kept: ours and the recorded counts, within 5 standard deviations."""
    trials, n, capacity = int(a["stat_trials"]), len(a["labels"]), int(a["capacity"])
    from perdure.families.rehearsal.buffer import reservoir_slots

    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(trials, n - capacity, dtype=torch.float64, generator=generator)
    counts = np.zeros(n)
    for row in uniforms:
        slots = reservoir_slots(0, n, capacity, row).tolist()
        holder = {slot: i for i, slot in enumerate(slots) if slot >= 0}
        counts[list(holder.values())] += 1
    expected = float(a["stat_expected"])
    deviation = (trials * (capacity / n) * (1 - capacity / n)) ** 0.5
    assert abs(expected - trials * capacity / n) < 1e-6
    for found in (counts, a["stat_counts"]):
        assert (np.abs(found - expected) < 5 * deviation).all()


def restore(memory: Memory, a: dict, prefix: str = "buf_before.") -> None:
    """Fill a memory with a file's buffer."""
    names = {"examples": "image", "labels": "label", "logits": "logits", "policy_logits": "policy"}
    saved = prefixed(a, prefix)
    state = memory.state_dict()
    state["columns"] = {ours: saved[theirs] for theirs, ours in names.items() if theirs in saved}
    state["seen"] = int(saved["num_seen"])
    state["written"] = torch.arange(memory.capacity) < state["seen"]
    memory.load_state_dict(state)


def check_memory(memory: Memory, a: dict, prefix: str = "buf_after.", **tolerance: float) -> None:
    names = {"examples": "image", "labels": "label", "logits": "logits", "policy_logits": "policy"}
    for theirs, value in prefixed(a, prefix).items():
        if theirs == "num_seen":
            assert memory.seen == int(value)
        else:
            close(memory.columns[names[theirs]], value, theirs, **tolerance)


def check_losses(found: dict, expected: dict, *, rtol: float) -> None:
    for theirs, ours in LOSSES.items():
        value = float(expected[theirs])
        if np.isnan(value):
            assert found.get(ours, 0.0) == 0.0, f"{ours} is absent in the official log"
        else:
            np.testing.assert_allclose(found[ours], value, rtol=rtol, atol=1e-9, err_msg=ours)
