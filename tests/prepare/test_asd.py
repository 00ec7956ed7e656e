"""Answer-style diversification: what becomes of records, and of a chat model's replies."""

import json
from collections import Counter

import pytest

from perdure.cli import main
from perdure.data.instruction import training_fault
from perdure.errors import RecipeError
from perdure.prepare.asd import diversify, diversify_file
from perdure.prepare.chat import Journal
from perdure.prepare.prompts import Item, prompt
from perdure.prepare.replies import BadReply, loose_json, read_reply
from perdure.prepare.styles import COIN_KINDS, KINDS, REQUESTS, STYLES, other_boxes

SHORT = REQUESTS["short"]


def record(i, question, answer, image=None):
    mark = "" if image is None else "<image>\n"
    said = [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
    shown = {} if image is None else {"image": image}
    return {"id": i, **shown, "conversations": said}


def records(kind, n=1000):
    if kind == "choice":
        return [record(i, f"Q{i}?\nA. x{i}\nB. y{i}\nC. z\n{REQUESTS['mcq']}", "ABC"[i % 3]) for i in range(n)]
    if kind == "box":
        return [record(i, f"Where is dog {i}?", "[0.10, 0.20, 0.50, 0.60]", f"{i}.png") for i in range(n)]
    return [record(i, f"What is in {i}?\n{SHORT}", f"thing {i % 50}", f"{i // 3}.png") for i in range(n)]


class Writer:
    """A chat model that answers any prompt as it should."""

    name = "writer"
    sees = True

    def __init__(self, spoil=None):
        self.asked, self.spoil = [], spoil

    def ask(self, requests, reply):
        for i, request in enumerate(requests):
            self.asked.append(request)
            text = written(request.user)
            reply(i, self.spoil(request, text) if self.spoil else text, "")


def written(user):
    """A reply in the form that the prompt shows."""
    if "target_index" in user:
        return '[{"target_index": 1, "description": "a brown dog"}]'
    key, value = "explanation", "it is seen at once"
    if "distractor_options" in user:
        key, value = "distractor_options", ["wrong a", "wrong b", "wrong c"]
    elif "distractor_option" in user:
        key, value = "distractor_option", "wrong a"
    if "question_index" not in user:
        return json.dumps({key: value})
    count = user.count("   Answer: ")
    return json.dumps([{"question_index": i, key: value} for i in range(1, count + 1)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_fifth_of_a_thousand_gives_fifty_records_of_each_other_style(kind):
    source = records(kind)
    made = diversify(source, task="t", kind=kind, share=20, chat=Writer())
    native = KINDS[kind].native
    assert made.manifest["styles"] == {native: 800, **{s: 50 for s in STYLES if s != native}}
    assert made.manifest["failed"] == [] and len(made.records) == 1000
    assert Counter(r["id"] for r in made.records) == Counter(r["id"] for r in source)
    assert all(training_fault(r) is None for r in made.records)
    requests = Counter(r["conversations"][0]["value"].split("\n")[-1] for r in made.records)
    expected = {s for s in STYLES if s not in ("brief", "detail") or kind != "box"} - {native}
    assert all(requests[REQUESTS[s]] == 50 for s in expected)


def test_all_eight_coin_tasks_have_a_kind():
    assert set(COIN_KINDS.values()) <= set(KINDS) and len(COIN_KINDS) == 8


def test_same_seed_same_file_and_another_seed_another():
    runs = [
        diversify(records("category"), task="t", kind="category", share=20, seed=s, chat=Writer()) for s in (0, 0, 1)
    ]
    assert runs[0].records == runs[1].records != runs[2].records


def test_share_zero_gives_the_identical_file(tmp_path):
    source = tmp_path / "train.json"
    source.write_text(json.dumps(records("choice", 20), indent=3))
    manifest = diversify_file(source, tmp_path / "train_x0.json", task="t", kind="choice", share=0)
    assert (tmp_path / "train_x0.json").read_bytes() == source.read_bytes()
    assert manifest["changed"] == []


def test_rules_keep_the_truth():
    made = diversify(records("choice"), task="t", kind="choice", share=100, chat=Writer())
    by_id = {r["id"]: r for r in made.records}
    yes = 0
    for entry in made.manifest["changed"]:
        question, answer = (m["value"] for m in by_id[entry["id"]]["conversations"])
        i = entry["id"]
        truth = (f"x{i}", f"y{i}", "z")[i % 3]
        if entry["style"] == "short":
            assert answer == truth
        elif entry["style"] == "yn":
            assert (answer == "Yes") == (f"Is the answer {truth}?" in question)
            yes += answer == "Yes"
    assert 80 < yes < 170  # of 250


def test_choices_of_a_category_question_hold_the_answer_once_under_its_letter():
    made = diversify(records("category"), task="t", kind="category", share=40, chat=Writer())
    by_id = {r["id"]: r for r in made.records}
    letters = Counter()
    for entry in made.manifest["changed"]:
        if entry["style"] == "mcq":
            question, answer = (m["value"] for m in by_id[entry["id"]]["conversations"])
            options = dict(line.split(". ", 1) for line in question.split("\n") if line[1:3] == ". ")
            assert len(set(options.values())) == 4 and options[answer] == f"thing {entry['id'] % 50}"
            letters[answer] += 1
    assert set(letters) == set("ABCD")


def test_other_boxes_are_within_the_image_and_overlap_little():
    import random

    boxes = other_boxes("[0.10, 0.20, 0.50, 0.60]", 3, random.Random(0))
    assert len(set(boxes)) == 3
    for box in boxes:
        values = [float(v) for v in box.strip("[]").split(", ")]
        assert all(0 <= v <= 1 for v in values)


def test_questions_of_one_image_go_together_and_yes_no_questions_stay():
    source = records("questions", 300) + [record(900 + i, "Is it red?", "yes", "0.png") for i in range(100)]
    writer = Writer()
    made = diversify(source, task="t", kind="questions", share=20, chat=writer)
    assert made.manifest["not_considered"] == {"yes/no questions, which have a style of their own": 100}
    assert len(writer.asked) < 80 and made.manifest["by_model"] == 80
    assert not {e["id"] for e in made.manifest["changed"]} & set(range(900, 1000))


def test_record_whose_reply_cannot_be_used_is_asked_again_then_stays_and_is_reported():
    writer = Writer(spoil=lambda request, text: "I cannot say." if request.attempt < 3 else text)
    made = diversify(records("question", 100), task="t", kind="question", share=8, chat=writer)
    assert made.manifest["styles"]["short"] == 100 and len(made.manifest["failed"]) == 8
    assert "the reply cannot be used: no JSON in it" in made.manifest["failed"][0]["why"]
    assert len(writer.asked) == 3 * 8
    writer = Writer(spoil=lambda request, text: "no" if request.attempt == 0 else text)
    made = diversify(records("question", 100), task="t", kind="question", share=8, chat=writer)
    assert made.manifest["failed"] == []


def test_wrong_option_that_is_the_right_answer_is_refused():
    def spoil(request, text):
        return text.replace("wrong a", "Thing 0")

    source = [record(i, f"What {i}?", "thing 0", "a.png") for i in range(100)]
    made = diversify(source, task="t", kind="question", share=20, chat=Writer(spoil))
    assert {e["style"] for e in made.manifest["failed"]} == {"yn", "mcq"}


def test_without_a_chat_model_rules_are_done_and_the_rest_is_reported():
    made = diversify(records("choice"), task="t", kind="choice", share=20)
    assert made.manifest["by_rule"] == 100 and len(made.manifest["failed"]) == 100
    assert {e["why"] for e in made.manifest["failed"]} == {"no chat model was given"}


def test_faulty_and_longer_records_stay_and_are_counted():
    long = record(1, "a?", "b")
    long["conversations"] *= 2
    two = record(2, "a?", "b", "0.png") | {"image": ["0.png", "1.png"]}
    two["conversations"][0]["value"] = "<image><image>\nSame?"
    film = record(3, "a?", "b") | {"video": "a.mp4"}
    source = [record(0, "a?", ""), long, two, film, *records("question", 98)]
    made = diversify(source, task="t", kind="question", share=20, chat=Writer())
    assert made.manifest["not_considered"] == {
        "faulty records": 1,
        "records of several rounds, or letters without options": 1,
        "records of several images or a video, which no request can show": 2,
    }


def test_unknown_kind_and_share_are_refused():
    with pytest.raises(RecipeError, match="there is no kind 'vqa'"):
        diversify([], task="t", kind="vqa", share=20)
    with pytest.raises(RecipeError, match="the share is 120"):
        diversify([], task="t", kind="box", share=120)


@pytest.mark.parametrize(
    "text",
    [
        '{"explanation": "so"}',
        '```json\n{"explanation": "so"}\n```',
        'Here it is: {"explanation": "so",} Hope this helps!',
        '{"explanation": "so" // a comment\n}',
        '{"gt_category": "dog"\n "explanation": "so"}',
        '[{"explanation": "so"}]',
    ],
)
def test_nearly_json_is_read(text):
    assert read_reply(text, prompt("question", "brief", [Item(question="q", answer="a")])) == ["so"]


def test_url_in_a_text_is_no_comment():
    assert loose_json('{"a": "see http://x.org"}') == {"a": "see http://x.org"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sorry", "no JSON in it"),
        ("[]", "0 objects instead of 2"),
        ('[{"question_index": 1, "explanation": "a"}, {"question_index": 1, "explanation": "b"}]', "is 1"),
        ('[{"question_index": 1, "explanation": "a"}, {"question_index": 3, "explanation": "b"}]', "is 3"),
        ('[{"question_index": 1, "explanation": "a"}, {"question_index": 2, "explanation": " "}]', "no text"),
        ('[{"question_index": 1, "explanation": "a"', "no JSON"),
    ],
)
def test_reply_that_lacks_something_is_refused(text, why):
    asked = prompt("questions", "brief", [Item(question="q", answer="a")] * 2)
    with pytest.raises(BadReply, match=why):
        read_reply(text, asked)


def test_reply_in_another_order_is_put_right():
    text = '[{"question_index": "2", "explanation": "b"} {"question_index": 1, "explanation": "a"},]'
    assert read_reply(text, prompt("questions", "brief", [Item(question="q", answer="a")] * 2)) == ["a", "b"]


def test_three_wrong_options_must_differ():
    asked = prompt("question", "mcq", [Item(question="q", answer="a")])
    with pytest.raises(BadReply, match="not 3 different texts"):
        read_reply('{"distractor_options": ["x", "X", "y"]}', asked)


def test_a_torn_journal_line_is_forgotten_and_the_next_is_whole(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.add("a", "1")
    with journal.path.open("a") as file:
        file.write('{"key": "b", "te')
    again = Journal(journal.path)
    again.add("c", "3")
    assert Journal(journal.path).replies == {"a": "1", "c": "3"}


def test_a_model_that_sees_nothing_is_sent_no_picture_and_the_manifest_says_so(tmp_path):
    seeing, blind = Writer(), Writer()
    blind.sees = False
    for chat, unseen in ((seeing, 0), (blind, 20)):
        made = diversify(records("question", 100), task="t", kind="question", share=20, chat=chat, images=tmp_path)
        assert made.manifest["by_model_unseen"] == unseen
    assert all(r.image is not None for r in seeing.asked) and all(r.image is None for r in blind.asked)


@pytest.mark.parametrize(
    ("count", "share", "said"),
    [
        (
            9,
            40,
            "40 % of 9 records do not make one of each of the four styles: none was rewritten; a share of 45 makes",
        ),
        (3, 100, "it takes four records to make one of each"),
        (9, 45, ""),
        (9, 0, ""),
    ],
)
def test_a_share_that_is_too_small_is_said_and_is_no_success(count, share, said, tmp_path, capsys):
    chat = [{"from": "human", "value": "<image>\nWhat is it?\nAnswer the question using a single word or phrase."}]
    rows = [
        {"id": i, "image": "a.png", "conversations": [*chat, {"from": "gpt", "value": f"a{i}"}]} for i in range(count)
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    words = ["prepare", "asd", str(tmp_path / "train.json"), "--kind", "question", "--share", str(share)]
    with pytest.raises(SystemExit) as leaving:
        main(words)
    out = capsys.readouterr().out
    assert (said in out) if said else ("none was rewritten" not in out)
    assert leaving.value.code == (0 if share == 0 else 1)  # 45 %: rules write two styles, no model the others


def test_questions_without_an_answer_are_counted_and_said(tmp_path, capsys):
    records = [{"question_id": str(i), "text": "Is it?", "answer": "yes"} for i in range(5)]
    (tmp_path / "test.json").write_text(json.dumps(records))
    (tmp_path / "merge.jsonl").write_text(json.dumps({"question_id": "0", "text": "yes", "prompt": "Is it?"}) + "\n")
    words = ["--task", "gqa", "--answers", tmp_path / "test.json", "--out", tmp_path / "out.jsonl"]
    with pytest.raises(SystemExit) as leaving:
        main(["prepare", "predictions", str(tmp_path / "merge.jsonl"), *map(str, words)])
    out = capsys.readouterr().out
    assert leaving.value.code == 0 and "wrote 5 records" in out
    assert f"4 of 5 questions have no answer in {tmp_path / 'merge.jsonl'}; they count as wrong" in out
