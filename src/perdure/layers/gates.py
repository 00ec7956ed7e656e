"""Gates that choose, for each image, which output channels of a convolution are kept.

Knows one gate: policy logits from the convolution's input, actions from policy logits. Does not know where
gates sit in a network (`perdure.layers.resnet`) nor how they are rewarded (`perdure.families.rehearsal.policy`).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.errors import RecipeError

Pooling = Literal["moments", "map"]
"""How a gate pools in training: `map` makes the normalized feature map and averages it, `moments` gets the
same average from the input's mean and covariance, without making the map."""


class Gate(nn.Module):
    """Policy logits of one gated convolution with `inputs` -> `channels` channels.

    ``z = mean over space of BN(pw x)``, ``y = sigmoid(fc2 relu(fc1 z))``, policy logits ``v = z y``. A channel
    is kept with probability ``sigmoid(v / temperature)``.

    Args:
        ratio: the hidden layer has ``channels // ratio`` units.
        temperature: of the keep probability.
    """

    def __init__(
        self, inputs: int, channels: int, *, ratio: int, temperature: float, pooling: Pooling = "moments"
    ) -> None:
        super().__init__()
        hidden = channels // ratio
        if hidden < 1:
            raise RecipeError(
                f"a gate over {channels} channels with hidden_ratio {ratio} has no hidden unit",
                expected=f"hidden_ratio of at most {channels}",
                todo="Widen the network or lower hidden_ratio.",
            )
        self.channels, self.temperature, self.pooling = channels, temperature, pooling
        self.pw = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Float[Tensor, "images inputs height width"]) -> Float[Tensor, "images channels"]:
        """Policy logits. In training mode the batch norm uses and records the batch's statistics."""
        if not self.training:
            pooled = pooled_with_running_statistics(x, self.pw.weight, self.bn)
        elif self.pooling == "moments":
            pooled = pooled_from_moments(x, self.pw.weight, self.bn)
        else:
            pooled = self.bn(self.pw(x)).mean(dim=(2, 3))
        return pooled * torch.sigmoid(self.fc2(torch.relu(self.fc1(pooled))))

    def probabilities(self, policy: Float[Tensor, "images channels"]) -> Float[Tensor, "images channels"]:
        """Keep probability of each channel."""
        return torch.sigmoid(policy / self.temperature)


def require_gates(net: nn.Module) -> None:
    """RecipeError if nothing in the network is gated."""
    if not any(isinstance(module, Gate) for module in net.modules()):
        raise RecipeError(
            "the network has no gates",
            where="models.net",
            expected="a gated_resnet with gated convolutions",
            todo="Set models.net=gated_resnet, or take the method multi_scale.",
        )


def sampled_actions(
    probabilities: Float[Tensor, "images channels"], uniforms: Float[Tensor, "images channels"]
) -> Float[Tensor, "images channels"]:
    """1 where ``u < p``: a Bernoulli draw whose randomness is handed in. No gradient."""
    return (uniforms.to(probabilities) < probabilities.detach()).to(probabilities.dtype)


def threshold_actions(
    probabilities: Float[Tensor, "images channels"], threshold: float
) -> Float[Tensor, "images channels"]:
    """1 where ``p >= threshold``: 0 keeps all channels, anything above 1 keeps none."""
    return (probabilities >= threshold).to(probabilities.dtype)


def log_probability(
    policy: Float[Tensor, "images channels"], actions: Float[Tensor, "images channels"], temperature: float
) -> Float[Tensor, " images"]:
    """``sum_c a log p + (1 - a) log(1 - p)``, from the policy logits and without overflow.

    Differs from `torch.distributions.Bernoulli` only where p lies within rounding of 0 or 1: there that
    class clamps p, and its gradient is zero.
    """
    scaled = policy / temperature
    return (actions * F.logsigmoid(scaled) + (1 - actions) * F.logsigmoid(-scaled)).sum(dim=1)


def pooled_with_running_statistics(
    x: Float[Tensor, "images inputs height width"], weight: Float[Tensor, "channels inputs 1 1"], bn: nn.BatchNorm2d
) -> Float[Tensor, "images channels"]:
    """Mean over space of ``BN(pw x)`` in evaluation. Both are affine, so the mean comes first."""
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    return (F.linear(x.mean(dim=(2, 3)), weight.flatten(1)) - bn.running_mean) * scale + bn.bias


def pooled_from_moments(
    x: Float[Tensor, "images inputs height width"], weight: Float[Tensor, "channels inputs 1 1"], bn: nn.BatchNorm2d
) -> Float[Tensor, "images channels"]:
    """Mean over space of ``BN(pw x)`` in training, exact, and the update of BN's running statistics.

    With ``m`` the mean of x over images and space and ``m_b`` over the space of image b, channel c of
    ``pw x`` has mean ``w_c m`` and variance ``w_c' Cov(x) w_c``, so the pooled value of image b is
    ``gamma w_c (m_b - m) / sqrt(var + eps) + beta``. Costs inputs^2 multiply-adds a pixel and no map.
    Under autocast it stays in the weights' precision, as the statistics of `nn.BatchNorm2d` do.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _pooled_from_moments(x.to(weight.dtype), weight.flatten(1), bn)


def _pooled_from_moments(x: Tensor, w: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    of_image = x.mean(dim=(2, 3))
    mean = of_image.mean(dim=0)
    # Centred first: E[xx'] - mm' would lose all digits of a variance that is small beside the mean.
    centred = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) - mean
    count = len(centred)
    covariance = centred.T @ centred / count
    variance = ((w @ covariance) * w).sum(dim=1)
    _record(bn, (w @ mean).detach(), variance.detach() * (count / max(count - 1, 1)))
    scale = bn.weight * torch.rsqrt(variance + bn.eps)
    return F.linear(of_image - mean, w) * scale + bn.bias


@torch.no_grad()
def _record(bn: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """What `nn.BatchNorm2d` does with the (unbiased) statistics of a training batch."""
    assert bn.running_mean is not None and bn.running_var is not None and bn.num_batches_tracked is not None
    assert bn.momentum is not None
    bn.running_mean.lerp_(mean, bn.momentum)
    bn.running_var.lerp_(variance, bn.momentum)
    bn.num_batches_tracked += 1
