"""`/v1/chat/completions`: OpenAI's form around a run's own answers."""

import json

import pytest

from perdure.serving import following
from perdure.serving.app import Settings, make
from perdure.serving.asked import Limits
from tests.in_use import in_use
from tests.served import base64_of, picture, serving

PATH = "/v1/chat/completions"
IMAGE = picture(0)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A run that answers questions, behind a server."""
    folder = tmp_path_factory.mktemp("served") / "mine"
    loaded = in_use(folder, "sefe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "load", lambda *_, **__: loaded)
        with serving(make(folder, Settings(limits=Limits(megabytes=1)))) as client:
            yield client, loaded


def url(image=IMAGE):
    return f"data:image/png;base64,{base64_of(image)}"


def asked(text="Color?", *images, **more):
    parts = [{"type": "text", "text": text}, *({"type": "image_url", "image_url": {"url": u}} for u in images)]
    return {"model": "perdure", "messages": [{"role": "user", "content": parts}], **more}


def test_the_answer_is_the_runs_own_in_openais_form(served):
    client, loaded = served
    (own,) = loaded.predict([{"image": IMAGE, "text": "Color?"}])
    status, body = client.json(asked("Color?", url(), temperature=0, n=1, max_tokens=100, user="me"), PATH)
    assert status == 200 and body["object"] == "chat.completion" and body["model"] == "mine@1"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": own["answer"], "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["id"].startswith("chatcmpl-") and isinstance(body["created"], int)
    text = {"model": "mine@1", "messages": [{"role": "user", "content": "Color?"}]}
    (plain,) = loaded.predict([{"text": "Color?"}])
    assert client.json(text, PATH)[1]["choices"][0]["message"]["content"] == plain["answer"]
    names = [one["id"] for one in client.ask("GET", "/v1/models")[1]["data"]]
    assert names == ["mine", "mine@1"]


def test_an_answer_is_streamed_whole_and_cut_where_it_is_asked_to_be(served):
    client, loaded = served
    body = json.dumps(asked("Color?", url(), stream=True)).encode()
    status, data, headers = client.ask("POST", PATH, body, {"Content-Type": "application/json"})
    events = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
    assert status == 200 and headers["content-type"].startswith("text/event-stream") and events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    (own,) = loaded.predict([{"image": IMAGE, "text": "Color?"}])
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == own["answer"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop" and {c["object"] for c in chunks} == {
        "chat.completion.chunk"
    }
    _, short = client.json(asked("Color?", url(), max_completion_tokens=1), PATH)
    choice = short["choices"][0]
    tokens = loaded.opened.method.llm.tokenizer.encode(own["answer"], add_special_tokens=False)
    assert len(tokens) < 2 or (
        choice["finish_reason"] == "length" and len(choice["message"]["content"]) < len(own["answer"])
    )


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
REFUSED = [
    ({"messages": []}, 400, "list of messages"),
    ({"messages": TURNS}, 400, "one message of the user"),
    ({"messages": [{"role": "system", "content": "Be brief."}, *TURNS[:1]]}, 400, "one message of the user"),
    (asked("Color?", "https://example.org/a.png"), 400, "addresses are not followed"),
    (asked("Color?", "file:///etc/passwd"), 400, "addresses are not followed"),
    (asked("Color?", "data:image/png;base64,%%"), 400, "no base64"),
    (asked("Color?", url(b"no image")), 400, "this is not an image"),
    (asked("Color?", url(), url()), 400, "2 images"),
    (asked(" ", url()), 400, "there is no question"),
    (asked("Color?", temperature=0.7), 400, "`temperature` can only be 0"),
    (asked("Color?", n=2), 400, "`n` can only be 1"),
    (asked("Color?", tools=[]), 400, "`tools` is not done here"),
    (asked("Color?", max_tokens=0), 400, "`max_tokens`"),
    (asked("Color?", stream="yes"), 400, "`stream`"),
    (asked("Color?") | {"model": "gpt-4o"}, 404, "there is no model 'gpt-4o'"),
    (asked("Color?") | {"model": "mine@7"}, 404, "version 7"),
    ([1], 400, "a JSON object"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "neither a text nor an image_url"),
    (asked("x" * 20_000), 413, "characters"),
    (asked("Color?", "data:image/png;base64," + "A" * 2**20), 413, "at most 1 MB"),
]


@pytest.mark.parametrize(("body", "status", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_not_done_is_refused_in_openais_form(served, body, status, said):
    found, answer = served[0].json(body, PATH)
    assert found == status and said in answer["error"]["message"]
    assert answer["error"].keys() == {"message", "type", "param", "code"}


def test_a_run_that_is_asked_nothing_says_where_to_ask(run, models):
    with serving(make(run, Settings())) as client:
        status, body = client.json(asked("Color?", url()), PATH)
    assert status == 404 and body["error"]["message"] == "this run answers with classes: ask /predict"
