"""perdure: adapt pretrained models to a changing world without losing what they know.

Light: torch is imported when something is run. ``perdure.run("mg_clip/microworld")`` runs a recipe and returns a
`Result`, which shows its table of scores and whose ``pages()`` writes the report; ``perdure.load_recipe`` reads one.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.api import Result
    from perdure.api import run_recipe as run
    from perdure.recipe import load as load_recipe

__version__ = "0.1.0"
__all__ = ["Result", "__version__", "load_recipe", "run"]

_LAZY = {"Result": ("perdure.api", "Result"), "load_recipe": ("perdure.recipe", "load")}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'perdure' has no attribute '{name}'")


class _Callable(ModuleType):
    """The module `perdure.run`, which can be called as well: ``perdure.run(recipe)``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from perdure.api import run_recipe

        return run_recipe(*args, **kwargs)


class _Package(ModuleType):
    """This package; `perdure.run` is imported when it is first asked for."""

    @property
    def run(self) -> ModuleType:
        from importlib import import_module

        module = import_module("perdure.run")
        module.__class__ = _Callable
        return module

    @run.setter
    def run(self, module: ModuleType) -> None:
        """Importing `perdure.run` sets it here; the property finds it in `sys.modules`."""


sys.modules[__name__].__class__ = _Package
