"""Pickles of which only what a reader names is made; nothing else of them runs.

Knows names in pickles. Does not know which of them a format needs: its reader says so.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import IO, Any

Allowed = Callable[[str, str], Any]
"""(module, name) -> what stands for it, None if it is refused."""


class Refused(pickle.UnpicklingError):
    """A pickle asks for a name that is not allowed."""


class Restricted(pickle.Unpickler):
    """An unpickler that makes what `allowed` gives, and numbers, text and containers.

    Raises:
        Refused: it asks for another name, which the message says.
    """

    def __init__(self, file: IO[bytes], allowed: Allowed, *, encoding: str = "ASCII") -> None:
        super().__init__(file, encoding=encoding)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        found = self._allowed(module, name)
        if found is None:
            raise Refused(f"it asks for {module}.{name}, which no such file needs; nothing of it was run")
        return found
