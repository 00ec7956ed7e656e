"""The name that was probably meant.

Knows spelling and the words of other libraries. Does not know what it names: settings, methods, metrics.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option that was probably meant: by a table of usual short forms, then by spelling."""
    options = list(options)
    by_plain = {_folded(option): option for option in options}
    for alias in (_folded(name), *_ALIASES.get(_folded(name), ())):
        if _folded(alias) in by_plain:
            return by_plain[_folded(alias)]
    cutoff = 0.7 if len(name) <= 3 else 0.6  # of short names nearly everything is near
    close = difflib.get_close_matches(_folded(name), list(by_plain), n=1, cutoff=cutoff)
    if close:
        return by_plain[close[0]]
    # A last part or a beginning: `cifar` for `cifar100`, `batch` for `batch_size`.
    parts = [o for o in options if len(name) > 2 and (name in o.split("_") or o.startswith(name))]
    return parts[0] if len(parts) == 1 else None


_ALIASES: dict[str, tuple[str, ...]] = {
    "lr": ("learning_rate",),
    "learningrate": ("lr",),
    "bs": ("batch_size",),
    "batch": ("batch_size",),
    "trainbatchsize": ("batch_size",),
    "wd": ("weight_decay",),
    "decay": ("weight_decay",),
    "epoch": ("epochs",),
    "nepochs": ("epochs",),
    "numepochs": ("epochs",),
    "step": ("steps",),
    "nworkers": ("workers",),
    "numworkers": ("workers",),
    "tau": ("temperature",),
    "temp": ("temperature",),
    "mom": ("momentum",),
    "bufsize": ("buffer_size", "buffer", "memory"),
    "buffersize": ("buffer", "memory"),
    "lorarank": ("rank", "r"),
    "r": ("rank", "lora_rank"),
    "rank": ("r", "lora_rank"),
    "loraalpha": ("alpha",),
    "dtype": ("precision",),
    "fp16": ("precision",),
    "bf16": ("precision",),
    "gpu": ("device",),
    "outputdir": ("out",),
    "output": ("out",),
    "dataset": ("data",),
    "datadir": ("root", "data"),
    "path": ("root",),
    "prompt": ("template", "templates"),
    "prompttemplate": ("template", "templates"),
    "randomseed": ("seed",),
    "model": ("models", "weights"),
    "checkpoint": ("weights",),
    "inc": ("increment",),
    "tasks": ("increment",),
    "type": ("name",),
}
"""Short forms and other libraries' words, folded -> what a setting may be called here, likeliest first."""


def _folded(name: str) -> str:
    return str(name).replace("_", "").replace("-", "").lower()
