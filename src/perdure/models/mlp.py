"""Two hidden layers with ReLU, for MNIST-like images: 784-100-100-10.

Xavier-uniform weights and zero biases, as in the rehearsal literature.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from perdure.errors import DataError
from perdure.layers import weights
from perdure.settings.config import Seed


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the multi-layer perceptron."""

    inputs: Annotated[int, Field(gt=0)] = 784
    """Values of an image: channels x height x width."""
    hidden: Annotated[int, Field(gt=0)] = 100
    """Units of each hidden layer."""
    head_grows = True
    classes: Annotated[int, Field(gt=0)] = 10
    """Outputs of the head: all classes of the stream."""
    seed: Seed | None = None
    """Seed of the initial weights; null: they follow the run's seed."""
    weights: Path | None = None
    """A state dict of this network to start from."""

    def bytes_needed(self) -> int:
        return 4 * self.hidden * (self.inputs + self.hidden + self.classes)


def load(config: Config) -> Mlp:
    """The network with fresh weights, or those of a checkpoint."""
    with weights.seeded(config.seed):
        net = Mlp(config.inputs, config.hidden, config.classes)
    if config.weights is not None:
        weights.load_into(net, config.weights)
    return net


class Mlp(nn.Module):
    """fc1 - ReLU - fc2 - ReLU - head, on flattened images."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.inputs, self.classes = inputs, classes
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, classes)
        for layer in (self.fc1, self.fc2, self.head):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "images ..."]) -> Float[Tensor, "images classes"]:
        """Logits."""
        return self.head(self.features(x))

    def features(self, x: Float[Tensor, "images ..."]) -> Float[Tensor, "images dim"]:
        """Output of the second hidden layer."""
        flat = x.flatten(1)
        if flat.shape[1] == 3 * self.inputs:
            flat = x[:, 0].flatten(1)  # a gray image whose channel was repeated
        if flat.shape[1] != self.inputs:
            raise DataError(
                f"images of {flat.shape[1]} values {tuple(x.shape[1:])}",
                where="mlp",
                expected=f"{self.inputs} values",
                todo="Set the model's inputs to channels x height x width.",
            )
        return torch.relu(self.fc2(torch.relu(self.fc1(flat))))
