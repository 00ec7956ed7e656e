"""perdure: adapt pretrained models to a changing world without losing what they know.

Light: torch is imported when something is run. ``perdure.run("mg_clip/microworld")`` runs a recipe and returns a
`Result`, which shows its table of scores and whose ``pages()`` writes the report; ``perdure.load_recipe`` reads one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.api import Result, run
    from perdure.prediction import predict
    from perdure.recipe import load as load_recipe

__version__ = "0.1.0"
__all__ = ["Result", "__version__", "load_recipe", "predict", "run"]

_LAZY = {"Result": ("perdure.api", "Result"), "run": ("perdure.api", "run"), "load_recipe": ("perdure.recipe", "load")}
_LAZY["predict"] = ("perdure.prediction", "predict")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'perdure' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
