"""Gate, gated block, network, reward and prototype loss against the published code (float64)."""

from __future__ import annotations

from pathlib import Path

import torch
from recorded import load, prefixed
from torch import Tensor
from torch.testing import assert_close

from perdure.families.rehearsal import policy
from perdure.layers.gates import Gate, log_probability, sampled_actions, threshold_actions
from perdure.layers.resnet import Block, ResNet, _Cutter

TOLERANCE = {"rtol": 1e-8, "atol": 1e-9}


def gate(file: Path) -> None:
    for pooling in ("map", "moments"):
        a = load(file)
        inputs, channels = a["p.pw.weight"].shape[1], a["p.pw.weight"].shape[0]
        module = Gate(
            inputs,
            channels,
            ratio=int(a["hidden_dim_ratio"]),
            temperature=float(a["temperature"]),
            pooling=pooling,
        ).double()
        module.load_state_dict(prefixed(a, "p."))
        x = torch.tensor(a["x"], requires_grad=True)
        module.eval()
        v = module(x)
        close(v, a["eval_logits"])
        close(module.probabilities(v), a["eval_probs"])
        for name, expected in a.items():
            if name.startswith("eval_actions_th"):
                close(threshold_actions(module.probabilities(v), float(name.split("th")[1])), expected, exact=True)
        module.train()
        v = module(x)
        p = module.probabilities(v)
        actions = sampled_actions(p, torch.tensor(a["uniforms"]))
        log_prob = log_probability(v, actions, module.temperature)[:, None]
        close(v, a["train_logits"])
        close(p, a["train_probs"])
        close(actions, a["train_actions"], exact=True)
        close(log_prob, a["train_log_prob"])
        scalar = (log_prob * torch.tensor(a["cot_log_prob"])).sum() + (v * torch.tensor(a["cot_logits"])).sum()
        close(scalar, a["scalar"])
        scalar.backward()
        close(x.grad, a["grad_x"])
        check_gradients(module, a)
        check_after(module, a)


def block(file: Path) -> None:
    for pooling in ("map", "moments"):
        a = load(file)
        channels, inputs = a["p.conv1.weight"].shape[:2]
        module = Block(
            inputs,
            channels,
            stride=int(a["stride"]),
            gated=(True, True),
            hidden_ratio=int(a["hidden_dim_ratio"]),
            temperature=float(a["temperature"]),
        ).double()
        module.gate1.pooling = module.gate2.pooling = pooling
        module.load_state_dict(prefixed(a, "p."))
        x = torch.tensor(a["x"], requires_grad=True)
        module.eval()
        close(module(x), a["eval_warmup_out"])
        records: list = []
        out = module.gated(x, _Cutter(None), 0.5, records)
        close(out, a["eval_out"])
        for i in (1, 2):
            close(records[i - 1][0], a[f"eval_actions{i}"], exact=True)
        off = records[1][0] == 0
        assert bool((out[off] == 0).all()), "a channel that is switched off is exactly 0"
        module.train()
        records = []
        uniforms = torch.tensor(a["uniforms1"]), torch.tensor(a["uniforms2"])
        out = module.gated(x, _Cutter(torch.cat(uniforms, dim=1)), 0.5, records)
        close(out, a["train_out"])
        scalar = (out * torch.tensor(a["cot_out"])).sum()
        for i, (actions, v, log_prob) in enumerate(records, start=1):
            close(actions, a[f"actions{i}"], exact=True)
            close(v, a[f"logits{i}"])
            close(log_prob[:, None], a[f"log_prob{i}"])
            scalar = scalar + (log_prob[:, None] * torch.tensor(a[f"cot_lp{i}"])).sum()
            scalar = scalar + (v * torch.tensor(a[f"cot_logits{i}"])).sum()
        close(scalar, a["scalar"])
        scalar.backward()
        close(x.grad, a["grad_x"])
        check_gradients(module, a)
        check_after(module, a)


def net(file: Path) -> None:
    for pooling in ("map", "moments"):
        a = load(file)
        module = gated_net(a, classes=int(a["n_classes"]))
        module.set_pooling(pooling)
        assert list(module.boundaries) == a["agent_boundaries"].tolist()
        x = torch.tensor(a["x"])
        module.eval()
        close(module(x), a["eval_warmup_out"])
        for name, expected in a.items():
            if name.startswith("eval_out_th"):
                threshold = name.removeprefix("eval_out_th")
                out = module.gated(x, threshold=float(threshold))
                close(out.logits, expected)
                close(out.actions, a[f"eval_actions_th{threshold}"], exact=True)
        module.train()
        out = module.gated(x, uniforms=torch.tensor(a["uniforms"]))
        close(out.logits, a["train_out"])
        close(out.actions, a["train_actions"], exact=True)
        close(out.policy, a["train_logits"])
        close(out.log_probs, a["train_log_prob"])
        scalar = (out.logits * torch.tensor(a["cot_out"])).sum()
        scalar = scalar + (out.log_probs * torch.tensor(a["cot_log_prob"])).sum()
        scalar = scalar + (out.policy * torch.tensor(a["cot_logits"])).sum()
        close(scalar, a["scalar"])
        scalar.backward()
        check_gradients(module, a)
        check_after(module, a)


def reward(file: Path) -> None:
    a = load(file)
    outputs = torch.tensor(a["outputs"], requires_grad=True)
    log_probs = torch.tensor(a["log_probs"], requires_grad=True)
    labels = torch.tensor(a["labels"])
    correct = policy.is_correct(outputs, labels)
    close(correct, a["correct"], exact=True)
    settings = {
        "boundaries": a["boundaries"].tolist(),
        "keep_ratio": float(a["keep_ratio"]),
        "penalty": float(a["policy_penalty"]),
    }
    actions = torch.tensor(a["actions"])
    close(policy.keep_rewards(actions, correct, **settings), a["rewards"])
    found = policy.terms(outputs, actions, torch.zeros_like(actions), log_probs, labels, **settings)
    close(found.cross_entropy, a["ce_loss"])
    close(found.policy, a["policy_loss"])
    total = found.cross_entropy + float(a["reward_weight"]) * found.policy
    close(total, a["total"])
    total.backward()
    close(outputs.grad, a["grad_outputs"])
    close(log_probs.grad, a["grad_log_probs"])


def prototype(file: Path) -> None:
    a = load(file)
    logits = torch.tensor(a["logits"], requires_grad=True)
    loss = policy.prototype_loss(logits, torch.tensor(a["labels"]))
    close(loss, a["loss"])
    loss.backward()
    close(logits.grad, a["grad_logits"])


def gated_net(a: dict, *, classes: int, prefix: str = "") -> ResNet:
    """The gated network with a file's weights; sizes from ``hp.*`` or plain names."""

    def setting(name: str) -> float:
        return float(a[f"hp.{name}" if f"hp.{name}" in a else name])

    module = ResNet(
        classes=classes,
        width=int(setting("nf")),
        gated=[f"stage2.block{b}.conv{c}" for b in (0, 1) for c in (1, 2)],
        hidden_ratio=int(setting("hidden_dim_ratio")),
        temperature=setting("temperature"),
    ).double()
    module.load_state_dict(prefixed(a, "p."))
    return module


def check_gradients(module: torch.nn.Module, a: dict) -> None:
    expected = prefixed(a, "g.")
    parameters = dict(module.named_parameters())
    assert expected.keys() == parameters.keys()
    for name, gradient in expected.items():
        close(parameters[name].grad, gradient, name)


def check_after(module: torch.nn.Module, a: dict) -> None:
    state = module.state_dict()
    expected = prefixed(a, "after.")
    assert expected
    for name, value in expected.items():
        close(state[name], value, name)


def close(found: Tensor | float | None, expected, name: str = "", *, exact: bool = False, **tolerance: float) -> None:
    assert found is not None
    found, expected = torch.as_tensor(found, dtype=torch.float64).detach(), torch.as_tensor(expected)
    limits = {"rtol": 0.0, "atol": 0.0} if exact else TOLERANCE | tolerance
    assert_close(
        found,
        expected.to(torch.float64),
        **limits,
        msg=lambda text: f"{name}: {text}",
    )
