"""Low-rank adapters (LoRA) over peft: put in, list, save, reset, freeze, switch off, export.

Knows where the official modes of MG-CLIP put adapters on a Hugging Face CLIPModel, and takes any other model with a
list of module names. Does not know methods, losses or optimizers. A layer ``W`` becomes
``W x + (alpha / r) B A x`` with A ``[r in]``, B ``[out r]`` and B = 0, so that nothing changes before training.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from perdure.errors import CheckpointError, RecipeError

Init = Literal["xavier", "kaiming"]
DEFAULT_MODE = "vision+only_kv+text"
_TOWER = {"vision": "vision_model", "text": "text_model"}
_OUTER = {
    "vision": r"vision_model\.embeddings\.patch_embedding",
    "text": r"text_model\.embeddings\.token_embedding|text_projection",
}
_NAME = ".default"
"""peft's name of the only adapter, left out of our names."""


def add_clip_lora(
    model: nn.Module,
    *,
    mode: str = DEFAULT_MODE,
    r: int = 8,
    alpha: float = 1.0,
    dropout: float = 0.0,
    init: Init = "xavier",
    generator: torch.Generator | None = None,
) -> dict[str, nn.Parameter]:
    """Adapters on a CLIPModel where one of MG-CLIP's modes puts them; the rest is frozen.

    Args:
        model: Hugging Face's CLIPModel (``clip.model``), changed in place.
        mode: words joined by ``+``: the towers (``vision``, ``text``), and either ``only_kv`` (key and value
            projections), ``mlp`` (no LoRA but a bottleneck of width `r` parallel to each MLP) or neither (all of q, k,
            v, out, both MLP layers, patch and token embedding, text projection).
        r, alpha, dropout, init, generator: see `add_lora`.

    Returns:
        The trainable parameters by name.

    Raises:
        RecipeError: unknown mode.
    """
    words = frozenset(mode.split("+"))
    if words not in _MODES:
        known = ", ".join("+".join(sorted(m, key=_ORDER.index)) for m in _MODES)
        raise RecipeError(f"unknown LoRA mode {mode!r}", expected=f"one of {known} (in any order)")
    towers = [t for t in _TOWER if t in words]
    if "mlp" in words:
        return _add_bottlenecks(model, towers=towers, r=r, init=init, generator=generator)
    targets = "|".join(_targets(tower, only_kv="only_kv" in words) for tower in towers)
    return add_lora(model, targets=targets, r=r, alpha=alpha, dropout=dropout, init=init, generator=generator)


def add_lora(
    model: nn.Module,
    *,
    targets: str | list[str],
    r: int,
    alpha: float,
    dropout: float = 0.0,
    init: Init = "xavier",
    generator: torch.Generator | None = None,
) -> dict[str, nn.Parameter]:
    """Put adapters into any model, in place; all other parameters are frozen.

    Args:
        model: any module with linear, convolution or embedding layers.
        targets: a regular expression that matches whole module names, or a list of name endings (peft's convention).
        r: rank.
        alpha: the update is scaled by ``alpha / r``.
        dropout: probability with which inputs of A are dropped in training.
        init: how A is drawn. "xavier": uniform with bound ``sqrt(6 / (in + r))``; "kaiming": peft's default, uniform
            with bound ``1 / sqrt(in)``.
        generator: draws A; None: torch's global generator.

    Returns:
        The trainable parameters by name, such as ``....k_proj.lora_A.weight``. In a half-precision model they are
        float32, as in peft.

    Raises:
        RecipeError: no module matches, or the model has adapters already.
    """
    if init not in ("xavier", "kaiming"):
        raise RecipeError(f"unknown init {init!r}", expected="xavier or kaiming")
    if any(_lora_tensors(model)):
        raise RecipeError("the model has adapters already", todo="Merge or remove them before adding others.")
    inject(model, targets=targets, r=r, alpha=alpha, dropout=dropout)
    _draw(model, init, generator)
    model.requires_grad_(False)
    for _, parameter in _lora_tensors(model):
        parameter.requires_grad_(True)
    return lora_parameters(model)


def inject(
    model: nn.Module, *, targets: str | list[str], r: int, alpha: float, dropout: float, task_type: str | None = None
) -> LoraConfig:
    """peft's layers in place of the targets; their factors are still to be drawn. Arguments as in `add_lora`.

    Args:
        task_type: peft's word for what the model is for, noted in saved adapters.

    Raises:
        RecipeError: no module matches, or one of them can have no adapter.
    """
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=targets, lora_dropout=dropout, task_type=task_type)  # type: ignore[arg-type]
    # peft draws weights, which are drawn again afterwards, and asks transformers things that it warns of.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            raise RecipeError(f"LoRA cannot be added: {error}") from None
    return config


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' trainable parameters by name."""
    return {name: p for name, p in _lora_tensors(model) if p.requires_grad}


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all adapter tensors (frozen ones too) by name, detached."""
    return {name: p.detach().clone() for name, p in _lora_tensors(model)}


@torch.no_grad()
def load_lora_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put the values of a `lora_state` back, in place, so that optimizers keep their parameters.

    Args:
        model: has the adapters that `state` was taken from.
        state: what `lora_state` gave.

    Raises:
        CheckpointError: the names or shapes are not those of the model's adapters.
    """
    own = dict(_lora_tensors(model))
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())
        raise CheckpointError(
            f"adapter names differ in {len(odd)} places, first {odd[0]}", todo="Use the same LoRA mode."
        )
    for name, parameter in own.items():
        if parameter.shape != state[name].shape:
            found, expected = list(state[name].shape), list(parameter.shape)
            raise CheckpointError(f"{name} has shape {found}", expected=str(expected), todo="Use the same rank.")
        parameter.copy_(state[name])


def reset_lora(model: nn.Module, start: Mapping[str, Tensor], *, only_b: bool = False) -> None:
    """Bring the adapters back to the `lora_state` of the start; raises as `load_lora_state` does.

    Args:
        model: has the adapters.
        start: what `lora_state` gave before training.
        only_b: keep A as trained and reset the factor that starts at 0; the model then answers as without adapters.
    """
    kept = {n: p for n, p in _lora_tensors(model) if only_b and _starts_random(n)}
    load_lora_state(model, {name: kept.get(name, value) for name, value in start.items()})


def freeze_a(model: nn.Module) -> dict[str, nn.Parameter]:
    """Train only the factor that starts at 0 from now on; returns what is still trainable."""
    for name, parameter in _lora_tensors(model):
        if _starts_random(name):
            parameter.requires_grad_(False)
    return lora_parameters(model)


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Within, the model answers as before `add_lora` (bit-equal); weights and frozen flags are untouched."""
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer | ParallelBottleneck)]
    flags = {p: p.requires_grad for _, p in _lora_tensors(model)}
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def save_adapter(model: nn.Module, folder: Path, *, base: str | None = None) -> None:
    """Write a PEFT folder that ``peft.PeftModel.from_pretrained(base_model, folder)`` loads without perdure.

    Args:
        model: the model that `add_lora` was given.
        folder: made if missing.
        base: hub id or path of the base model, noted in the adapter's configuration.

    Raises:
        RecipeError: the adapters are no LoRA (mode ``mlp``).
    """
    config = getattr(model, "peft_config", {}).get("default")
    if config is None:
        raise RecipeError("no LoRA in the model", todo="Bottlenecks (mode mlp) have no PEFT form; save the state.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft looks for a vocabulary size that CLIP does not have
        tensors = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    write_folder(folder, config, tensors, base=base)


def write_folder(
    folder: Path,
    config: LoraConfig,
    tensors: Mapping[str, Tensor],
    *,
    base: str | None,
    modules_to_save: list[str] | None = None,
) -> None:
    """A PEFT folder of an adapter's tensors, named as in the model, and of modules that are saved whole beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    prefixed = {f"base_model.model.{name}": t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    save_file(prefixed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    saved = replace(config, base_model_name_or_path=base, inference_mode=True, modules_to_save=modules_to_save)
    saved.save_pretrained(str(folder))


class ParallelBottleneck(nn.Module):
    """``mlp(h) + W2 quick_gelu(W1 h)`` with W1 ``[r width]``, W2 ``[width r]`` = 0: MG-CLIP's mode ``mlp``."""

    def __init__(self, base_layer: nn.Module, width: int, r: int, *, like: Tensor) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(width, r, bias=False, device=like.device, dtype=like.dtype)
        self.lora_B = nn.Linear(r, width, bias=False, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.lora_B.weight)
        self._enabled = True

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the bottleneck on or off (peft's verb)."""
        self._enabled = enabled

    def forward(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The MLP's output, plus the bottleneck's where it is on."""
        if not self._enabled:
            return self.base_layer(hidden)
        inner = self.lora_A(hidden)
        return self.base_layer(hidden) + self.lora_B(inner * torch.sigmoid(1.702 * inner))


_ORDER = ["vision", "only_kv", "mlp", "text"]
_MODES = [
    frozenset([*towers, *what])
    for what in (["only_kv"], [], ["mlp"])
    for towers in (["vision", "text"], ["vision"], ["text"])
]


def _targets(tower: str, *, only_kv: bool) -> str:
    layer = rf"{_TOWER[tower]}\.encoder\.layers\.\d+\."
    if only_kv:
        return layer + r"self_attn\.(k|v)_proj"
    return layer + rf"(self_attn\.(q|k|v|out)_proj|mlp\.fc(1|2))|{_OUTER[tower]}"


def _lora_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Adapter parameters by the name that they have in a PEFT file, without its prefix."""
    for name, parameter in model.named_parameters():
        if ".lora_" in f".{name}":
            yield name.replace(_NAME, ""), parameter


def _starts_random(name: str) -> bool:
    """A of a layer; of an embedding B, since peft starts an embedding's A at 0."""
    return "lora_A" in name or "lora_embedding_B" in name


@torch.no_grad()
def _draw(model: nn.Module, init: Init, generator: torch.Generator | None) -> None:
    """Fresh A, on the CPU in float32 so that device and precision do not change the draw; half becomes float32."""
    for name, parameter in _lora_tensors(model):
        if parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()
        fresh = torch.zeros(parameter.shape)
        if "lora_embedding_B" in name:
            fresh.normal_(generator=generator)
        elif "lora_A" in name and init == "xavier":
            nn.init.xavier_uniform_(fresh, generator=generator)
        elif "lora_A" in name:
            nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
        parameter.copy_(fresh)


def _add_bottlenecks(
    model: nn.Module, *, towers: list[str], r: int, init: Init, generator: torch.Generator | None
) -> dict[str, nn.Parameter]:
    if any(_lora_tensors(model)):
        raise RecipeError("the model has adapters already", todo="Merge or remove them before adding others.")
    with torch.random.fork_rng(devices=[]):
        for tower in towers:
            encoder: Any = model.get_submodule(f"{_TOWER[tower]}.encoder")
            for layer in encoder.layers:
                weight = layer.mlp.fc1.weight
                layer.mlp = ParallelBottleneck(layer.mlp, weight.shape[1], r, like=weight)
    _draw(model, init, generator)
    model.requires_grad_(False)
    for _, parameter in _lora_tensors(model):
        parameter.requires_grad_(True)
    return lora_parameters(model)
