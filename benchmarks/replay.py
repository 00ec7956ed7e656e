"""Speed of rehearsal: ours against the plain schedule, and what the loop costs beside the bare step.

    python benchmarks/replay.py --threads 1 --out benchmarks/results/replay_1_thread.json

The plain schedule does what common rehearsal code does: PIL transforms image by image (crop, mirror, tensor,
normalize), one buffer insert a sample, replayed images transformed one by one, gates pooled over whole maps,
torch's default layout. Same networks, same batch sizes: those published for CIFAR (32 current, 32 replayed, 32 x 32
pixels, cropped and mirrored), for Dynamos those published for SVHN (16 and 16, as they are). The bare step is
the network's arithmetic (three forward passes for DER++) and the optimizer on tensors that are there, in our layout.
All variants run in turns in one process; the fastest round counts. Seconds are CPU seconds of the process with
one thread (other jobs on the machine hardly matter), wall seconds with more.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import platform
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms

from perdure.families import rehearsal
from perdure.families.rehearsal import policy
from perdure.families.rehearsal.buffer import Draws
from perdure.families.rehearsal.modularity import multiply_accumulates
from perdure.methods.dynamos.skipping import Skipping, gated_pass
from perdure.methods.gem import project
from perdure.models import gated_resnet, mlp, resnet18
from perdure.runtime import Runtime
from perdure.settings import registry
from perdure.types import Example, Examples, Task

BATCH, DYNAMOS_BATCH, GEM_BATCH = 32, 16, 10
CLASSES = 10
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)
CHANNELS = 256
"""Gated channels of the TinyResNet-18."""


class SmallCnn(nn.Sequential):
    """Three convolutions with batch norm and pooling, 10 million multiply-accumulates an image."""

    classes = CLASSES

    def __init__(self) -> None:
        torch.manual_seed(0)
        widths = (3, 32, 64, 128)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES))


NETS = {
    "small CNN": SmallCnn,
    "ResNet-18 nf=64": lambda: resnet18.load(resnet18.Config(width=64, seed=0, mean=MEAN, std=STD)),
    "ResNet-18 nf=20": lambda: resnet18.load(resnet18.Config(width=20, seed=0, mean=MEAN, std=STD)),
    "TinyResNet-18 nf=32": lambda: tiny(),
}


def tiny():
    """The plain net beside Dynamos."""
    return resnet18.load(resnet18.Config(width=32, stages=(1, 2), seed=0, mean=MEAN, std=STD))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", nargs="*", choices=list(NETS), default=list(NETS))
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, help="a file; what it holds of other parts stays")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    timing = Timing(clock, options.steps, options.rounds)
    known = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    result = known | {
        "machine": processor(),
        "torch": torch.__version__,
        "threads": options.threads,
        "seconds": "CPU" if options.threads == 1 else "wall",
        **{name: PARTS[name](timing, options.nets) for name in options.only},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


def processor() -> str:
    """The CPU's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


class Timing:
    """The fastest of some rounds, variants taking turns."""

    def __init__(self, clock: Callable[[], float], steps: int, rounds: int) -> None:
        self.clock, self.steps, self.rounds = clock, steps, rounds

    def __call__(self, variants: dict[str, Callable[[], object]]) -> dict[str, float]:
        best = dict.fromkeys(variants, float("inf"))
        for turn in range(self.rounds + 1):  # the first turn warms up
            for name, variant in variants.items():
                begin = self.clock()
                variant()
                if turn:
                    best[name] = min(best[name], self.clock() - begin)
        return best

    def once(self, variant: Callable[[], object]) -> float:
        """Seconds of one call."""
        begin = self.clock()
        variant()
        return self.clock() - begin


# -- training -----------------------------------------------------------------------------------------------


def training(net: str, timing: Timing) -> list[dict]:
    """Images of the stream a second: ours, the plain schedule and the bare step."""
    task = make_task(BATCH * timing.steps)
    rows = []
    for name in ("sgd", "er", "derpp"):
        ours = make_method(name, NETS[net]())
        plain = Plain(name, NETS[net]())
        bare = Bare(name, NETS[net]())
        fill(ours, task), plain.learn(task), bare.fill(task)
        times = timing(
            {
                "ours": lambda m=ours: m.learn(task, runtime()),
                "plain": lambda m=plain: m.learn(task),
                "bare": lambda m=bare: m.steps(timing.steps),
            }
        )
        rows.append(row(net, name, times, BATCH * timing.steps))
    return rows


def gates(timing: Timing) -> list[dict]:
    """Dynamos beside DER++ on the plain network of the same size; gates pooled by moments and over maps."""
    task = make_task(DYNAMOS_BATCH * timing.steps)
    how: dict = {"batch": DYNAMOS_BATCH, "augment": "none"}
    derpp = make_method("derpp", tiny(), **how)
    nets = [gated_resnet.load(gated_resnet.Config(seed=0)) for _ in range(3)]
    dynamos, over_maps = (make_method("dynamos", net, **how) for net in nets[:2])
    over_maps.net.set_pooling("map")
    plain = Plain("dynamos", nets[2], **how)
    for method in (derpp, dynamos, over_maps):
        fill(method, task)
    plain.learn(task)
    times = timing(
        {
            "derpp": lambda: derpp.learn(task, runtime()),
            "dynamos": lambda: dynamos.learn(task, runtime()),
            "dynamos, map": lambda: over_maps.learn(task, runtime()),
            "plain schedule": lambda: plain.learn(task),
        }
    )
    images = DYNAMOS_BATCH * timing.steps
    found = [{"variant": name, "images_per_second": round(images / t, 1)} for name, t in times.items()]
    return [*found, {"variant": "dynamos step / derpp step", "ratio": round(times["dynamos"] / times["derpp"], 3)}]


def overhead(timing: Timing) -> list[dict]:
    """Milliseconds of a step beyond the bare one, over 20 tasks: with a linear model nothing else is left."""
    rows = []
    steps = 60
    for name in ("sgd", "er", "derpp"):
        method = make_method(name, Linear())
        bare = Bare(name, Linear(), augment=False)
        spent = []
        task = make_task(BATCH * steps, size=8)
        bare.fill(task)
        for _ in range(20):
            reading = timing.once(lambda t=task, m=method: rehearsal.read(t, m.net, runtime()))
            spent.append(timing.once(lambda t=task, m=method: m.learn(t, runtime())) - reading)
        floor = timing({"bare": lambda b=bare: b.steps(steps)})["bare"]
        of = [round(1000 * (t - floor) / steps, 3) for t in spent]
        rows.append({"method": name, "ms_first_tasks": min(of[:5]), "ms_last_tasks": min(of[-5:]), "ms_of_task": of})
    return rows


def gem(timing: Timing) -> list[dict]:
    """GEM at the fifth task of sequential MNIST: batches of 10, 200 images stored of four tasks, no augmentation."""
    rows = []
    for net, size in (("mlp", 28), ("small CNN", 32)):
        task = make_task(GEM_BATCH * timing.steps * 10, size=size, channels=1 if net == "mlp" else 3)
        networks = [make_network(net) for _ in range(2)]
        ours, plain = make_method("gem", networks[0], batch=GEM_BATCH, augment="none"), PlainGem(networks[1])
        for _ in range(4):
            fill(ours, task)
        begin = copy.deepcopy(ours.state_dict())
        plain.fill(ours)

        def learn(method: Any = ours, task: Task = task, begin: dict = begin) -> None:
            method.load_state_dict(copy.deepcopy(begin))
            method.learn(task, runtime())

        times = timing({"ours": learn, "plain": lambda plain=plain, task=task: plain.learn(task)})
        images = len(task.train)
        found = {f"{k}_images_per_second": round(images / t, 1) for k, t in times.items()}
        rows.append({"net": net, **found, "ours / plain": round(times["plain"] / times["ours"], 2)})
    return rows


def make_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return mlp.load(mlp.Config(seed=0)) if name == "mlp" else NETS[name]()


class Linear(nn.Module):
    """Arithmetic of no weight."""

    classes = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 8 * 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def inference(timing: Timing) -> list[dict]:
    """Skipping channels beside computing and masking them, at about 0.7 of the channels.

    Gates of the network are set so that each image has a mask of its own; with `same` a batch is one image.
    """
    net = half_open(gated_resnet.load(gated_resnet.Config(seed=0)).eval())
    published = half_open(gated_resnet.load(gated_resnet.Config(seed=0)).eval())
    for gate in published.gates().values():
        gate.forward = functools.partial(over_map, gate)
    rows = []
    for images, same in ((1, False), (8, False), (32, False), (128, False), (32, True)):
        generator = torch.Generator().manual_seed(images)
        x = torch.rand(1 if same else images, 3, 32, 32, generator=generator)
        x = (x * torch.rand(len(x), 3, 1, 1, generator=generator) * 2).expand(images, -1, -1, -1).contiguous()
        near = x.contiguous(memory_format=torch.channels_last)
        repeat = max(1, 32 // images)
        passes = {
            "published": lambda x=x: published.gated(x),
            "dense": lambda x=near: net.gated(x),
            "skipping": functools.partial(Skipping(net), near),
            "folded": functools.partial(gated_pass(net, "folded"), near),
            "plain": lambda x=near: net(x),
        }
        with torch.inference_mode():
            actions = net.gated(x).actions
            gap = (Skipping(net)(x).logits - net.gated(x).logits).abs().max()
            assert gap < 1e-4, gap
            times = timing({name: lambda f=f, n=repeat: [f() for _ in range(n)] for name, f in passes.items()})
        rows.append(
            {
                "images": images,
                "keep_ratio": round(float(actions.mean()), 3),
                "distinct_masks": len(actions.unique(dim=0)),
                "largest_difference": float(gap),
                **{f"ms_{name}": round(1000 * t / repeat, 2) for name, t in times.items()},
                "published / skipping": round(times["published"] / times["skipping"], 2),
                "dense / skipping": round(times["dense"] / times["skipping"], 2),
                **limits(net, actions),
            }
        )
    return rows


def half_open(net):
    """Gates that keep about 0.7 of their channels and look at the image."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for gate in net.gates().values():
            gate.fc2.weight.zero_()
            gate.fc2.bias.zero_()
            gate.bn.bias.copy_(0.5 * torch.randn(64, generator=generator) + 0.27)
            gate.bn.weight.fill_(3.0)
    return net


def over_map(gate, x: Tensor) -> Tensor:
    """The gate as published: the 1x1 convolution at full resolution, then the mean."""
    pooled = gate.bn(gate.pw(x)).mean(dim=(2, 3))
    return pooled * torch.sigmoid(gate.fc2(torch.relu(gate.fc1(pooled))))


def limits(net, actions: Tensor) -> dict[str, float]:
    """How much quicker skipping could be by its multiply-accumulates alone."""
    every = torch.ones(1, CHANNELS)
    work = multiply_accumulates(net, actions, height=32, width=32).mean()
    size = {"height": 32, "width": 32}
    return {
        "limit_published": round(float(multiply_accumulates(net, every, gates="map", **size) / work), 2),
        "limit_dense": round(float(multiply_accumulates(net, every, **size) / work), 2),
    }


# -- ours ---------------------------------------------------------------------------------------------------


def make_task(count: int, size: int = 32, channels: int = 3) -> Task:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, count)
    made = [Example(id=str(i), inputs={"image": images[i]}, target=int(labels[i])) for i in range(count)]
    names = tuple(map(str, range(CLASSES)))
    return Task(index=0, name="bench", kind="classify", candidates=names, train=Examples.of(made))


def make_method(name: str, net: nn.Module, *, batch: int = BATCH, augment: str = "crop_flip"):
    cls = registry.load("methods", name)
    settings: dict = {"lr": 0.001, "batch_size": batch}
    if name != "sgd":
        settings |= {"buffer_size": 200}
    if name not in ("sgd", "gem"):
        settings |= {"minibatch_size": batch}
    settings |= {"warmup": 0} if name == "dynamos" else {}
    augment = "none" if isinstance(net, Linear) else augment
    return cls(cls.Config(**settings, augment=augment), net=net)


def fill(method, task: Task) -> None:
    method.learn(task, runtime())


def runtime() -> Runtime:
    made = Runtime(device="cpu", quiet=True)
    made.task = 0
    return made


def row(net: str, name: str, times: dict[str, float], images: int) -> dict:
    return {
        "net": net,
        "method": name,
        **{f"{k}_images_per_second": round(images / t, 1) for k, t in times.items()},
        "ours / plain": round(times["plain"] / times["ours"], 2),
        "overhead_percent": round(100 * (times["ours"] / times["bare"] - 1), 1),
    }


# -- the bare step: the network's arithmetic alone, on tensors that are there -------------------------------


class Bare:
    def __init__(self, name: str, net: nn.Module, *, augment: bool = True) -> None:
        self.name, self.net, self.draws = name, net.train(), Draws()
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.001)

    def fill(self, task: Task) -> None:
        images = np.stack([task.train[i].inputs["image"].transpose(2, 0, 1) for i in range(BATCH)])
        self.x = (torch.from_numpy(images).float() / 255).contiguous(memory_format=torch.channels_last)
        self.y = torch.tensor(task.train.targets[:BATCH])
        self.logits = torch.randn(BATCH, CLASSES)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.optimizer.zero_grad()
            if self.name == "er":
                loss = F.cross_entropy(self.net(torch.cat([self.x, self.x])), torch.cat([self.y, self.y]))
            else:
                loss = F.cross_entropy(self.net(self.x), self.y)
            if self.name == "derpp":
                loss = loss + 0.2 * F.mse_loss(self.net(self.x), self.logits)
                loss = loss + 0.5 * F.cross_entropy(self.net(self.x), self.y)
            loss.backward()
            self.optimizer.step()


# -- the plain schedule -------------------------------------------------------------------------------------


class Plain:
    """Rehearsal image by image, as it is commonly written."""

    def __init__(self, name: str, net: nn.Module, *, batch: int = BATCH, augment: str = "crop_flip") -> None:
        self.name, self.net, self.batch = name, net.train(), batch
        if hasattr(net, "set_pooling"):
            net.set_pooling("map")
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.001)
        self.to_tensor: Callable = transforms.ToTensor()
        self.augment, self.again = self.to_tensor, torch.clone
        if augment == "crop_flip":
            crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
            self.augment = transforms.Compose([*crop, self.to_tensor, transforms.Normalize(MEAN, STD)])
            self.again = transforms.Compose([transforms.ToPILImage(), self.augment])
        if getattr(net, "mean", None) is not None:  # here images are normalized one by one
            net.mean = net.std = None
        self.slots: list[tuple] = []
        self.seen = 0

    def learn(self, task: Task) -> None:
        order = torch.randperm(len(task.train)).tolist()
        for start in range(0, len(order), self.batch):
            self.step([task.train[i] for i in order[start : start + self.batch]])

    def step(self, examples: list[Example]) -> None:
        pictures = [Image.fromarray(e.inputs["image"]) for e in examples]
        x = torch.stack([self.augment(p) for p in pictures])
        raw = torch.stack([self.to_tensor(p) for p in pictures])
        y = torch.tensor([e.target for e in examples])
        self.optimizer.zero_grad()
        loss, logits, gate = getattr(self, f"_{self.name}")(x, y)
        loss.backward()
        self.optimizer.step()
        if self.name != "sgd":
            self.store(raw, y, logits, gate)

    def _sgd(self, x: Tensor, y: Tensor):
        return F.cross_entropy(self.net(x), y), None, None

    def _er(self, x: Tensor, y: Tensor):
        if self.slots:
            past, told, _, _ = self.draw()
            x, y = torch.cat([x, past]), torch.cat([y, told])
        return F.cross_entropy(self.net(x), y), torch.zeros(len(x), CLASSES), None

    def _derpp(self, x: Tensor, y: Tensor):
        logits = self.net(x)
        loss = F.cross_entropy(logits, y)
        if self.slots:
            past, _, then, _ = self.draw()
            loss = loss + 0.2 * F.mse_loss(self.net(past), then)
            past, told, _, _ = self.draw()
            loss = loss + 0.5 * F.cross_entropy(self.net(past), told)
        return loss, logits.detach(), None

    def _dynamos(self, x: Tensor, y: Tensor):
        out, loss = self.gated(x, y)
        if self.slots:
            past, told, then, gate = self.draw()
            again, more = self.gated(past, told)
            loss = loss + 0.2 * F.mse_loss(again.logits, then) + 0.2 * F.mse_loss(again.policy, gate) + 2 * more
        return loss, out.logits.detach(), out.policy.detach()

    def gated(self, x: Tensor, y: Tensor):
        out = self.net.gated(x, uniforms=torch.rand(len(x), CHANNELS))
        terms = policy.terms(*out, y, boundaries=self.net.boundaries, keep_ratio=0.7, penalty=-500.0)
        return out, terms.cross_entropy + 0.5 * terms.policy + 0.3 * terms.prototype

    def draw(self):
        chosen = np.random.choice(len(self.slots), min(self.batch, len(self.slots)), replace=False)
        images = torch.stack([self.again(self.slots[i][0]) for i in chosen])
        columns = [[self.slots[i][k] for i in chosen] for k in (1, 2, 3)]
        gate = torch.stack(columns[2]) if columns[2][0] is not None else None
        return images, torch.stack(columns[0]), torch.stack(columns[1]), gate

    def store(self, raw: Tensor, y: Tensor, logits: Tensor, gate: Tensor | None) -> None:
        for i in range(len(raw)):
            item = (raw[i].clone(), y[i], logits[i].clone(), None if gate is None else gate[i].clone())
            if len(self.slots) < 200:
                self.slots.append(item)
            elif (slot := np.random.randint(0, self.seen + 1)) < 200:
                self.slots[slot] = item
            self.seen += 1


class PlainGem:
    """Gradients of one past task after another, written parameter by parameter into a matrix; our solver."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net.train()
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.001)
        self.to_tensor: Callable = transforms.ToTensor()
        self.past: list[tuple[Tensor, Tensor]] = []
        self.sizes = [p.numel() for p in net.parameters()]

    def fill(self, ours: Any) -> None:
        """The images that our method holds, and its weights."""
        self.net.load_state_dict(ours.net.state_dict())
        self.past = [(images.clone(), labels.clone()) for images, labels in ours._past_tasks()]

    def learn(self, task: Task) -> None:
        order = torch.randperm(len(task.train)).tolist()
        for start in range(0, len(order), GEM_BATCH):
            examples = [task.train[i] for i in order[start : start + GEM_BATCH]]
            pictures = [Image.fromarray(e.inputs["image"].squeeze()) for e in examples]
            self.step(torch.stack([self.to_tensor(p) for p in pictures]), torch.tensor([e.target for e in examples]))

    def step(self, x: Tensor, y: Tensor) -> None:
        memories = torch.zeros(len(self.past), sum(self.sizes))
        for place, (images, labels) in enumerate(self.past):
            self.optimizer.zero_grad()
            F.cross_entropy(self.net(images), labels).backward()
            self.write(memories[place])
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(x), y).backward()
        own = torch.zeros(sum(self.sizes))
        self.write(own)
        if bool((memories @ own < 0).any()):
            step = project(own, memories, margin=0.5)
            for part, parameter in zip(step.split(self.sizes), self.net.parameters()):
                parameter.grad.copy_(part.view_as(parameter))  # type: ignore[union-attr]
        self.optimizer.step()

    def write(self, row: Tensor) -> None:
        begin = 0
        for parameter, size in zip(self.net.parameters(), self.sizes):
            if parameter.grad is not None:
                row[begin : begin + size].copy_(parameter.grad.view(-1))
            begin += size


PARTS: dict[str, Callable[[Timing, list[str]], list[dict]]] = {
    "training": lambda timing, nets: [row for name in nets for row in training(name, timing)],
    "gates": lambda timing, nets: gates(timing),
    "gem": lambda timing, nets: gem(timing),
    "overhead": lambda timing, nets: overhead(timing),
    "inference": lambda timing, nets: inference(timing),
}


if __name__ == "__main__":
    main()
