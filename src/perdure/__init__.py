"""perdure: adapt pretrained models to a changing world without losing what they know.

Light: torch is imported when something is run. ``perdure.run("mg_clip/microworld")`` runs a recipe and returns a
`Result`, which shows its table of scores, gives them as numbers (``mean``, ``frame()``) and writes their report
(``pages()``). ``load`` opens a run to be asked; ``check``, ``predict``, ``report``, ``export`` and ``update`` do what
the commands of these names do; ``load_recipe`` reads a recipe.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.api import Result, run
    from perdure.exports import export
    from perdure.prediction import load, predict
    from perdure.recipe import load as load_recipe
    from perdure.recipe.checked import check
    from perdure.reporting import report_below as report
    from perdure.updating import update

__version__ = "0.1.0"
__all__ = ["Result", "__version__", "check", "export", "load", "load_recipe", "predict", "report", "run", "update"]

_LAZY = {
    "Result": "perdure.api:Result",
    "check": "perdure.recipe.checked:check",
    "export": "perdure.exports:export",
    "load": "perdure.prediction:load",
    "load_recipe": "perdure.recipe:load",
    "predict": "perdure.prediction:predict",
    "report": "perdure.reporting:report_below",
    "run": "perdure.api:run",
    "update": "perdure.updating:update",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, _, attribute = _LAZY[name].partition(":")
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'perdure' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
