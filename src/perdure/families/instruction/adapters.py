"""Low-rank updates on every linear layer of a language model but its head, as PEFT layers.

Knows how they are attached, started, merged or stacked, switched off and saved as a PEFT folder. Does not know losses
or tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from perdure.errors import CheckpointError, RecipeError
from perdure.families.instruction import stacked
from perdure.families.instruction.settings import Tuning
from perdure.layers import lora
from perdure.layers.low_rank import fresh_a, merged
from perdure.models.language_model import LanguageModel
from perdure.runtime import Runtime
from perdure.runtime.sharding import put, whole
from perdure.types import Task

_ADAPTER = "default"
L = TypeVar("L", bound=nn.Module)


@dataclass(frozen=True)
class Matrix:
    """One adapted layer."""

    layer: Any
    """PEFT's layer."""

    @property
    def weight(self) -> nn.Parameter:
        """The frozen weight, ``[outputs, inputs]``; packed where it is quantized."""
        return self.layer.base_layer.weight

    @property
    def quantized(self) -> bool:
        return not self.weight.is_floating_point()

    def dense(self) -> Tensor:
        """The frozen weight as numbers, ``[outputs, inputs]``."""
        return dequantize_module_weight(self.layer.base_layer) if self.quantized else whole(self.weight)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs); a weight in parts may not tell."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def a(self) -> nn.Parameter:
        """``[rank, inputs]``."""
        return self.layer.lora_A[_ADAPTER].weight

    @property
    def b(self) -> nn.Parameter:
        """``[outputs, rank]``."""
        return self.layer.lora_B[_ADAPTER].weight


class Adapters:
    """The low-rank updates of a language model, attached and switched off."""

    def __init__(self, llm: LanguageModel, tuning: Tuning) -> None:
        self.llm = llm
        self.scale = tuning.alpha / tuning.rank
        self.names = llm.linear_names()
        """Name in the language model -> in the whole model."""
        self.config = lora.inject(
            llm.model,
            targets=list(self.names.values()),
            r=tuning.rank,
            alpha=tuning.alpha,
            dropout=tuning.dropout,
            task_type="CAUSAL_LM",
        )
        self.matrices = {own: Matrix(llm.model.get_submodule(name)) for own, name in self.names.items()}
        """By name in the language model: ``layers.0.self_attn.q_proj``."""
        for m in self.matrices.values():  # steps are too small for half precision
            m.a.data, m.b.data = m.a.data.float(), m.b.data.float()
        self.stacks = tuning.past == "stacked" or (
            tuning.past == "auto" and any(m.weight.dtype != torch.float32 for m in self.matrices.values())
        )
        """Whether earlier updates are kept beside the weights."""
        if not self.stacks and any(m.quantized for m in self.matrices.values()):
            raise RecipeError(
                "updates cannot be merged into quantized weights: rounding would lose them",
                where="method.tuning.past",
                expected="auto or stacked",
            )
        if self.stacks:
            for m in self.matrices.values():
                outputs, inputs = m.shape
                stacked.prepare(m.layer.base_layer, inputs=inputs, outputs=outputs, device=m.a.device)
        llm.prepare(max_length=tuning.max_length, projector=tuning.projector_lr != 0)
        self.enable(False)

    def parameters(self) -> dict[str, nn.Parameter]:
        """All factors by name."""
        return {f"{n}.{which}": getattr(m, which) for n, m in self.matrices.items() for which in ("a", "b")}

    def start(self, runtime: Runtime) -> None:
        """Fresh factors, A random and B zero, ready for training."""
        with torch.no_grad():
            for name, m in self.matrices.items():
                noise = runtime.normal(tuple(m.a.shape), "lora", name, dtype=torch.float64)
                m.a.copy_(fresh_a(noise))
                m.b.zero_()
        self.enable(True)

    def enable(self, on: bool) -> None:
        """Switch the updates on or off; training them follows."""
        for m in self.matrices.values():
            m.layer.enable_adapters(on)
            for parameter in (m.a, m.b):
                parameter.requires_grad_(on)

    def hold(self) -> None:
        """Stop training the updates, and leave them on."""
        for parameter in self.parameters().values():
            parameter.requires_grad_(False)

    def load_factors(self, factors: Mapping[str, Tensor]) -> None:
        """What `parameters` gave; the updates are on, and not trained."""
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.copy_(factors[name])
        self.enable(True)
        self.hold()

    def off(self) -> AbstractContextManager[None]:
        """Without the updates."""
        return lora.without_lora(self.llm.model)

    def merge(self, *, dtype: torch.dtype = torch.float32) -> None:
        """Make the updates part of what is frozen, in the weights or beside them, and switch them off.

        Args:
            dtype: in which they are added to the weights.
        """
        with torch.no_grad():
            for m in self.matrices.values():
                if self.stacks:
                    stacked.append(m.layer.base_layer, m.a, self.scale * m.b)
                else:
                    put(m.weight, merged(whole(m.weight), m.a, m.b, scale=self.scale, dtype=dtype))
                m.b.zero_()
        self.enable(False)

    def added(self) -> dict[str, Tensor]:
        """The weights with all updates added in float32 and rounded once, by name in the whole model; nothing changes.

        What is quantized becomes numbers first: the updates were learned beside those, not beside the first weights.
        """
        return {f"{self.names[name]}.base_layer.weight": self._added(m) for name, m in self.matrices.items()}

    @torch.no_grad()
    def _added(self, m: Matrix) -> Tensor:
        dense = m.dense()
        wide = merged(dense.float(), m.a, m.b, scale=self.scale)
        if self.stacks:
            a, b = stacked.factors(m.layer.base_layer)
            wide = wide + b @ a
        return wide.to(self.llm.dtype)

    def weights(self) -> dict[str, Tensor]:
        """The dense weights under the updates, by name; empty where earlier updates are beside them, unchanged."""
        return {} if self.stacks else {name: whole(m.weight).data for name, m in self.matrices.items()}

    def stacked(self) -> dict[str, dict[str, Tensor]]:
        """Factors of earlier updates beside the weights, by name; empty where they are merged."""
        return {name: {"a": a, "b": b} for name, (a, b) in self.products().items()}

    def merged(self, how: str) -> dict[str, Tensor]:
        """What `merge` merges beside `products`: dense weights, where updates are added to them, and a projector
        that is trained; nothing by magmax, where updates are products."""
        dense = {} if self.stacks else {f"{name}.weight": m.weight for name, m in self.matrices.items()}
        projector = {f"projector.{n}": p for n, p in self.llm.projector_parameters().items()}
        return {} if self.stacks and how == "magmax" else {**dense, **projector}

    def products(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(A, B) of earlier updates beside the weights, by name; empty where they are added to them."""
        return {name: stacked.factors(m.layer.base_layer) for name, m in self.matrices.items()} if self.stacks else {}

    def put_products(self, products: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Others in their place."""
        for name, m in self.matrices.items():
            stacked.put(m.layer.base_layer, *products[name])

    def load(self, weights: Mapping[str, Tensor], past: Mapping[str, Mapping[str, Tensor]]) -> None:
        """What `weights` and `stacked` gave.

        Raises:
            CheckpointError: updates were merged there and are stacked here, or the other way.
        """
        if bool(weights if self.stacks else past):
            raise CheckpointError(
                f"earlier updates are {'merged' if self.stacks else 'stacked'} in this state",
                todo=f"Set method.tuning.past={'merged' if self.stacks else 'stacked'}, as it was made.",
            )
        with torch.no_grad():
            for name, m in self.matrices.items():
                if self.stacks:
                    stacked.put(m.layer.base_layer, past[name]["a"], past[name]["b"])
                else:
                    put(m.weight, weights[name])

    @property
    def base(self) -> str:
        """Hub id or folder of the model beneath."""
        return str(getattr(self.llm.model.config, "_name_or_path", "") or "")

    def save_task(self, task: Task, runtime: Runtime) -> None:
        """The update of a task, in the run's folder ``adapters/01_name``."""
        if runtime.out is not None and runtime.main:
            name = "".join(c if c.isalnum() or c in "-_" else "_" for c in task.name)
            self.save(runtime.out / "adapters" / f"{task.index + 1:02}_{name}")

    def save(self, folder: Path) -> None:
        """A PEFT folder: the factors, and the projector among ``modules_to_save`` where it is trained."""
        tensors = {f"{self.names[n]}.lora_A.weight": m.a for n, m in self.matrices.items()}
        tensors |= {f"{self.names[n]}.lora_B.weight": m.b for n, m in self.matrices.items()}
        parts = self.llm.projector_parts if self.llm.trains_projector else {}
        for path, module in parts.items():
            tensors |= {f"{path}.{name}": tensor for name, tensor in module.state_dict().items()}
        saved = [path.removeprefix("model.") for path in parts]
        lora.write_folder(folder, self.config, tensors, base=self.base, modules_to_save=saved or None)


def replace_linear(llm: LanguageModel, make: Callable[[nn.Linear], L]) -> dict[str, L]:
    """Put a layer around every linear layer of the language model but its head; the new ones are frozen, by name."""
    layers: dict[str, L] = {}
    for name, base in [(n, m) for n, m in llm.language_model.named_modules() if isinstance(m, nn.Linear)]:
        parent, _, child = name.rpartition(".")
        layers[name] = make(base)
        layers[name].requires_grad_(False).eval()
        setattr(llm.language_model.get_submodule(parent), child, layers[name])
    return layers
