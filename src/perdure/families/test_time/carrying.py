"""What an online method carries from test example to test example, handed over where a test stops and goes on.

Knows an object with a state. Does not know what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Carries:
    """A method whose `carried` is made with the predictor of a test set; None before."""

    carried: Any = None

    def stream_state(self) -> dict[str, Any]:
        """What the test set so far has left: with it a stopped test goes on where it stood."""
        return {} if self.carried is None else self.carried.state_dict()

    def load_stream_state(self, state: Mapping[str, Any]) -> None:
        """Go on after a `stream_state`; the predictor of the test set has been made."""
        if self.carried is not None:
            self.carried.load_state_dict(state)
