"""Text and JSON files: written so that other programs read them, read as other programs write them."""

import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import DataError, WeightsError
from perdure.evaluate import read_records
from perdure.files.text_files import lines, read_json, read_json_lines, to_json


def test_numbers_that_json_lacks_become_null_however_deep():
    value = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, 2)}], "d": "NaN"}
    text = to_json(value, indent=1)
    expected = {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "NaN"}
    assert json.loads(text, parse_constant=lambda name: 1 / 0) == expected


def test_other_values_stay_as_they_are():
    value = {"é": [True, None, 0.1, "\u2028"]}
    assert to_json(value) == json.dumps(value, ensure_ascii=False)


SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"


@given(texts=st.lists(st.text(st.sampled_from('a,"\\{' + SEPARATORS)), min_size=1))
def test_lines_end_with_a_line_feed_alone(texts):
    assert lines("".join(f"{text}\n" for text in texts)) == texts
    assert lines("\r\n".join([*texts, ""])) == texts


@given(answers=st.lists(st.text(), min_size=1, max_size=5))
def test_what_perdure_writes_it_reads_again_whatever_an_answer_holds(answers, tmp_path_factory):
    file = tmp_path_factory.mktemp("records") / "0_0.jsonl"
    rows = [{"id": str(i), "prediction": answer} for i, answer in enumerate(answers)]
    file.write_bytes("".join(to_json(row) + "\n" for row in rows).encode("utf-8", "surrogatepass"))
    assert read_records(file) == rows
    assert [row for _, row in read_json_lines(file)] == rows


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(file) == {"a": 1}
    assert [row for _, row in read_json_lines(file)] == [{"a": 1}]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "there is no such file"),
        ("folder", "this is a folder"),
        ("pipe", "this is a pipe or a device"),  # nobody writes into it, and nobody waits
        (b"\xff\xfe{", "no UTF-8 text"),
        (b"{", "this is no JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_something_else_is_one_error_that_names_it(tmp_path, content, what):
    file = tmp_path / "a.json"
    if content == "folder":
        file.mkdir()
    elif content == "pipe":
        os.mkfifo(file)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=f"a.json: .*{what}"):
        read_json(file)
    with pytest.raises(WeightsError, match=what):
        read_json(file, error=WeightsError)


def test_a_line_that_is_no_json_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n\n{"a"')
    with pytest.raises(DataError, match=r"a\.jsonl, line 3: this is no JSON"):
        list(read_json_lines(file))
