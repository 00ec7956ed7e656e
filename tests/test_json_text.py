"""JSON that other programs read: NaN and infinities are null."""

import json
import math

from perdure.json_text import to_json


def test_numbers_that_json_lacks_become_null_however_deep():
    value = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, 2)}], "d": "NaN"}
    text = to_json(value, indent=1)
    expected = {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "NaN"}
    assert json.loads(text, parse_constant=lambda name: 1 / 0) == expected


def test_other_values_stay_as_they_are():
    value = {"é": [True, None, 0.1, "\u2028"]}
    assert to_json(value) == json.dumps(value, ensure_ascii=False)
