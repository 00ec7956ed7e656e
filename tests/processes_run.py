"""What two processes do together, each a small network: ``python -m tests.processes_run OUT``.

Started by test_processes.py through torch's launcher.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from perdure import api, checkpoint, training
from perdure.errors import Interrupted
from perdure.loading import TensorBatches
from perdure.runtime import Runtime, collectives


class Net(nn.Module):
    """Two layers, of which `rare` works on some batches alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.rare = nn.Linear(4, 5), nn.Linear(5, 1), nn.Linear(4, 1)

    def forward(self, x):
        return self.last(self.first(x).tanh())[:, 0]


def data(n=22):
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(n, 4, generator=g), "y": torch.randn(n, generator=g)}


def loss_of(net):
    def loss(batch):
        error = (net(batch["x"]) - batch["y"]).square().mean()
        positive = batch["x"][:, 0] > 0
        rare = net.rare(batch["x"][positive]).square().sum() / len(positive)
        values = {"loss": error + rare, "error": error}
        return {**values, "rare": rare} if positive.any() else values

    return loss


def learn(runtime, *, epochs, before=lambda step: None, batch_size=4):
    """The network after a fit, its losses beside it. The last batch holds two examples."""
    net = Net()
    batches = TensorBatches(data(), batch_size=batch_size, runtime=runtime, stage="s")
    steps = iter(range(10**9))

    def loss(batch):
        before(next(steps))
        return loss_of(net)(batch)

    settings = training.Fit(lr=0.05, epochs=epochs, clip_norm=1.0)
    losses = training.fit(loss, dict(net.named_parameters()), batches, settings, runtime=runtime, stage="s")
    return {"net": net.state_dict(), "losses": losses}


def whole(out, **settings):
    """A fit that comes to its end."""
    runtime = Runtime(device="cpu", out=out, quiet=True, threads=1, **settings)
    result = learn(runtime, epochs=4)
    runtime.finish()
    checkpoint.save(out / f"rank{runtime.rank}.safetensors", result)


def stopped(out, save_every):
    """The last process alone hears a signal, at its seventh step; what each says of where it stopped."""
    runtime = Runtime(device="cpu", out=out, quiet=True, threads=1, save_every=save_every)

    def before(step):
        time.sleep(0.002 * runtime.rank)
        if step == 7 and runtime.rank == runtime.processes - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with api.stopping_on_signals(runtime):
        try:
            learn(runtime, epochs=100, before=before)
        except Interrupted as stop:
            (out / f"stopped{runtime.rank}.txt").write_text(str(stop))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    whole(folder / "whole")
    collectives.BUCKET = 30
    whole(folder / "small_buckets")
    stopped(folder / "stopped", save_every=1e9)
    stopped(folder / "stopped_saving", save_every=0.01)
