"""A file that a Windows editor saved is read by every reader of text as the same file without its mark."""

import json

import pytest

from perdure.cli._adapt import read_classes
from perdure.data import caption_texts, captions, clips, instruction, music_avqa, table
from perdure.prepare.captions import read_records

ROW = {"id": "a", "image_id": 1, "caption": "a cat", "references": ["a cat"]}
TALK = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]
READERS = {
    "captions.json": (json.dumps([{"image": "a.jpg", "caption": "a cat"}]), captions.read_captions),
    "texts.tsv": ("text\turl\na cat\thttp://x\n", lambda p: caption_texts.read(caption_texts.Config(path=p)).train[0]),
    "table.csv": ("filename\tlabel\nx\t1\n", lambda p: clips.read_table(p, ("filename",))),
    "categories.txt": ("cat\ndog\n", lambda p: clips.class_names(p.parent, ())),
    "avqa.json": ("[]", music_avqa.read_records),
    "talk.json": (
        json.dumps([{"id": "1", "conversations": TALK}]),
        lambda p: instruction.read(instruction.Config(name="t", train=p)).train[0],
    ),
    "list.csv": ("path,label\nx.jpg,cat\n", lambda p: list(table.rows(table.Config(path=p)))),
    "list.jsonl": (json.dumps({"path": "x.jpg", "label": "cat"}), lambda p: list(table.rows(table.Config(path=p)))),
    "records.jsonl": (json.dumps(ROW) + "\n", read_records),
    "classes.txt": ("cat\ndog\n", lambda p: read_classes(f"@{p}")),
}


@pytest.mark.parametrize("name", READERS)
def test_a_byte_order_mark_changes_nothing(tmp_path, name):
    content, read = READERS[name]
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    plain = read(path)
    path.write_text(content, encoding="utf-8-sig")
    assert read(path) == plain and (plain or content == "[]")
