"""`perdure serve`: answers as the model's own, batches, changes of version under load, limits, feedback, figures."""

import http.client
import io
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from perdure.cli import main
from perdure.data.fitting import fitting
from perdure.errors import CheckpointError, RecipeError
from perdure.run_folder import versions
from perdure.serving import following
from perdure.serving.app import Settings, make
from perdure.serving.asked import Limits
from tests.in_use import in_use
from tests.served import base64_of, picture, serving

PICTURES = [picture(i) for i in range(8)]


def served(run, **more):
    return serving(make(run, Settings(**{"every": 0.02, "max_wait_ms": 2.0, **more})))


def expected(model, image, top=5):
    (row,) = model.predict([image], top=top)
    return [(one["class"], pytest.approx(one["probability"], abs=2e-4)) for one in row["answers"]]


def told(row):
    return [(one["class"], one["probability"]) for one in row["answers"]]


def test_a_form_json_and_a_bare_image_get_the_models_own_answers_in_order(run, models):
    with served(run) as client:
        status, body = client.form(("file", PICTURES[0]), ("file", b"no image"), ("file", PICTURES[1]), ("top", "2"))
        assert status == 200 and body["version"] == 1 and body["kind"] == "classify"
        assert told(body["predictions"][0]) == expected(models[1], PICTURES[0], 2)
        assert body["predictions"][1] == {"error": "this is not an image"}
        assert told(body["predictions"][2]) == expected(models[1], PICTURES[1], 2)
        inputs = [{"image": base64_of(p)} for p in PICTURES[:3]] + [{"text": "no image"}]
        status, body = client.json({"inputs": inputs, "top": 1})
        assert status == 200 and [len(row.get("answers", ())) for row in body["predictions"]] == [1, 1, 1, 0]
        assert body["predictions"][3] == {"error": "there is no image"}
        truncated = PICTURES[0][: len(PICTURES[0]) // 2]
        assert "truncated" in client.json({"image": base64_of(truncated)})[1]["predictions"][0]["error"]
        status, body, headers = client.ask("POST", "/predict?top=3", PICTURES[4], {"Content-Type": "image/png"})
        assert told(body["predictions"][0]) == expected(models[1], PICTURES[4], 3)
        assert headers["x-perdure-version"] == "1"


def test_many_at_once_share_batches_and_are_answered_as_alone(run, models):
    with served(run, max_wait_ms=20.0, max_batch=8) as client, ThreadPoolExecutor(16) as pool:
        asked = [(i % 8, 1 + i % 3) for i in range(64)]
        found = list(pool.map(lambda a: client.form(("file", PICTURES[a[0]]), ("top", str(a[1]))), asked))
        assert all(status == 200 for status, _ in found)
        for (i, top), (_, body) in zip(asked, found):
            assert told(body["predictions"][0]) == expected(models[1], PICTURES[i], top)
        figures = client.ask("GET", "/metrics")[1].decode()
    assert figure(figures, "perdure_batch_inputs_sum") == 64
    assert figure(figures, "perdure_batch_inputs_count") < 40  # several shared a batch
    assert figure(figures, 'perdure_requests_total{path="/predict",status="200"}') == 64
    assert figure(figures, 'perdure_inputs_total{version="1"}') == 64


def figure(text, name):
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)[1])


def test_a_promoted_version_takes_over_under_load_and_no_request_fails(run, models):
    own = {n: [expected(models[n], p) for p in PICTURES] for n in models}
    with served(run) as client:
        seen, stop = [[] for _ in range(4)], threading.Event()

        def hammer(rows):
            while not stop.is_set():
                for i in range(len(PICTURES)):
                    status, body = client.form(("file", PICTURES[i]), ("file", PICTURES[i - 1]))
                    rows.append((status, body.get("version"), i, body.get("predictions")))

        threads = [threading.Thread(target=hammer, args=(rows,)) for rows in seen]
        for thread in threads:
            thread.start()
        for number in (2, 1, 2):
            time.sleep(0.25)
            versions.point(run, number, by="a test")
            wait_for(lambda number=number: client.ask("GET", "/health")[1]["version"] == number)
        time.sleep(0.1)
        stop.set()
        for thread in threads:
            thread.join()
    answered = {}
    for rows in seen:
        order = [version for _, version, *_ in rows]
        assert [status for status, *_ in rows] == [200] * len(rows)
        changes = [b for a, b in pairwise(order) if a != b]
        assert changes == [2, 1, 2]  # never back and forth: each saw each change once
        for _, version, i, predictions in rows:
            answered[version] = answered.get(version, 0) + 1
            assert [told(p) for p in predictions] == [own[version][i], own[version][i - 1]]
    assert set(answered) == {1, 2}


def wait_for(true, seconds=20.0):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_version_that_cannot_be_used_leaves_the_old_one_and_is_named(run, models, monkeypatch):
    with served(run) as client:
        broken = CheckpointError("the file is damaged", where="versions/000002")
        sound = following.load
        monkeypatch.setattr(following, "load", lambda *_, **__: (_ for _ in ()).throw(broken))
        versions.point(run, 2, by="a test")
        wait_for(lambda: client.ask("GET", "/health")[1]["refused"])
        status, health, _ = client.ask("GET", "/health")
        assert status == 200 and health["version"] == 1
        assert health["refused"] == {"version": 2, "why": "versions/000002: the file is damaged"}
        assert client.form(("file", PICTURES[0]))[1]["version"] == 1
        monkeypatch.setattr(following, "load", sound)
        refused = []  # as it stood whenever a model began to answer

        def spied(this, name, value):
            refused.extend([this.refused] if name == "model" else [])
            object.__setattr__(this, name, value)

        monkeypatch.setattr(following.Served, "__setattr__", spied)
        versions.point(run, 2, by="a test again")
        wait_for(lambda: client.ask("GET", "/health")[1]["version"] == 2)
        assert client.ask("GET", "/health")[1]["refused"] is None and refused == [{}]


def test_drained_requests_are_refused_while_a_version_is_loaded(run, monkeypatch):
    go, load = threading.Event(), following.load
    with served(run, drain=True) as client:
        monkeypatch.setattr(following, "load", lambda *a, **k: go.wait(20) and load(*a, **k))
        versions.point(run, 2, by="a test")
        wait_for(lambda: client.ask("GET", "/health")[0] == 503)
        status, body, headers = client.ask("POST", "/predict", PICTURES[0], {"Content-Type": "image/png"})
        assert (status, headers["retry-after"]) == (503, "5") and body == {"error": "a version is being loaded"}
        go.set()
        wait_for(lambda: client.ask("GET", "/health")[0] == 200)
        assert client.form(("file", PICTURES[0]))[1]["version"] == 2


def test_a_full_queue_refuses_and_what_was_queued_is_answered(run):
    app = make(run, Settings(queue=3, max_batch=4))
    with serving(app) as client, ThreadPoolExecutor(4) as pool:
        held = threading.Event()
        app.state.service.batcher.between_batches(lambda: held.wait(20))
        waiting = [pool.submit(client.form, ("file", p)) for p in PICTURES[:3]]
        wait_for(lambda: client.ask("GET", "/health")[1]["waiting"] == 3)
        status, body, headers = client.ask("POST", "/predict", PICTURES[0], {"Content-Type": "image/png"})
        assert (status, body["error"], headers["retry-after"]) == (503, "too many requests wait", "1")
        held.set()
        assert [job.result()[0] for job in waiting] == [200] * 3


def test_other_versions_are_asked_by_number_where_that_is_allowed(run, models):
    with served(run) as client:
        _, listed, _ = client.ask("GET", "/versions")
        assert [(v["version"], v["promoted"], v["answers"]) for v in listed["versions"]] == [
            (1, True, True),
            (2, False, False),
        ]
        assert listed["classes"] == list(models[1].classes) and not listed["feedback"]
        status, body, headers = client.ask("POST", "/predict?version=2", PICTURES[3], {"Content-Type": "image/png"})
        assert headers["x-perdure-version"] == "2" and told(body["predictions"][0]) == expected(models[2], PICTURES[3])
        for wanted, status in (("3", 404), ("x", 400), ("-1", 400), ("9" * 30, 400)):
            assert client.ask("POST", f"/predict?version={wanted}", PICTURES[3])[0] == status
    with served(run, keep=0) as client:
        assert client.ask("POST", "/predict?version=2", PICTURES[3], {"Content-Type": "image/png"})[0] == 404
    with served(f"{run}@2") as client:
        assert client.form(("file", PICTURES[0]))[1]["version"] == 2


PNG = {"Content-Type": "image/png"}
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=edge"}
MALFORMED = [
    (b"", {}, 415),
    (b"x", {"Content-Type": "text/html"}, 415),
    (b"", PNG, 200),  # one input, with an error of its own
    (b"", JSON, 400),
    (b"{", JSON, 400),
    (b"\xff\xfe", JSON, 400),
    (b"[" * 100_000, JSON, 400),
    (b"[]", JSON, 400),
    (b"{}", JSON, 400),
    (b'{"inputs": 3}', JSON, 400),
    (b'{"inputs": []}', JSON, 400),
    (b'{"inputs": [3]}', JSON, 400),
    (b'{"inputs": [{"image": 3}]}', JSON, 400),
    (b'{"inputs": [{"image": "https://example.org/a.png"}]}', JSON, 400),
    (b'{"inputs": [{"image": "../../etc/passwd"}]}', JSON, 400),
    (b'{"inputs": [{"text": ["x"]}]}', JSON, 400),
    (b'{"image": "AAAA", "top": 0}', JSON, 400),
    (b'{"image": "AAAA", "top": true}', JSON, 400),
    (b'{"image": "AAAA", "top": 1e400}', JSON, 400),
    (b'{"image": "AAAA", "task": "none such"}', JSON, 400),
    (json.dumps({"text": "x" * 20_000}).encode(), JSON, 413),
    (json.dumps({"inputs": [{"text": "x"}] * 65}).encode(), JSON, 413),
    (b"no form at all", FORM, 400),
    (b"--edge\r\n", FORM, 400),
    (b'--edge\r\nContent-Disposition: form-data; name="top"\r\n\r\nzero\r\n--edge--', FORM, 400),
    (b'--edge\r\nContent-Disposition: form-data\r\n\r\nx\r\n--edge--', FORM, 400),
    (b"x", {"Content-Type": "multipart/form-data"}, 400),
]  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory, models):
    """One server for all requests that are refused."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text("x: 1\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "load", lambda *_, **__: models[1])
        limits = Limits(megabytes=1, megapixels=1, seconds=0.5)
        with serving(make(folder, Settings(limits=limits))) as client:
            yield client


@pytest.mark.parametrize(("body", "headers", "status"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_request_gets_one_message(client, body, headers, status):
    found, said, _ = client.ask("POST", "/predict", body, headers)
    assert found == status
    assert isinstance(said, dict) and ("error" in said or "error" in said["predictions"][0])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.one_of(
        st.binary(max_size=300),
        st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(
            st.sampled_from(["inputs", "image", "text", "top", "ask", "task"]) | st.text(), s), max_leaves=8
        ).map(lambda v: json.dumps(v).encode()),
    ),
    kind=st.sampled_from(["image/png", "application/json", "multipart/form-data; boundary=edge", "image/*", "a/b"]),
    query=st.sampled_from(["", "?top=2", "?top=-1", "?version=1", "?version=%00"]),
)  # fmt: skip
def test_no_request_makes_an_internal_error(client, body, kind, query):
    status, _, _ = client.ask("POST", f"/predict{query}", body, {"Content-Type": kind})
    assert status == 200 or 400 <= status < 500


def test_formats_for_which_pillow_runs_programs_are_not_opened(client):
    stored = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stored, "EPS")
    assert client.ask("POST", "/predict", stored.getvalue(), PNG)[1]["predictions"] == [
        {"error": "this is not an image"}
    ]


def test_what_is_too_large_too_many_pixels_or_too_slow_is_refused(client):
    assert client.ask("POST", "/predict", b"x" * (2**20 + 1), PNG)[0] == 413
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    chunks = (b"x" * 2**16 for _ in range(40))
    connection.request("POST", "/predict", chunks, PNG, encode_chunked=True)  # its length is not said before
    assert connection.getresponse().status == 413
    large = picture(0, (1200, 1000), "PNG")[:2000]  # more pixels than are allowed, whatever follows
    assert client.ask("POST", "/predict", large, PNG)[1]["predictions"] == [{"error": "1200 x 1000 pixels"}]
    halves = [{"image": base64_of(picture(i, (800, 700), "JPEG"))} for i in range(2)]
    status, body = client.json({"inputs": halves})
    assert status == 413 and "1,120,000 pixels altogether" in body["error"]
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as slow:
        slow.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\nx"
        )
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_page_elsewhere_and_a_stranger_without_the_token_may_not_ask(client, run):
    assert client.ask("POST", "/predict", PICTURES[0], {**PNG, "Host": "evil.example"})[0] == 400
    assert client.ask("POST", "/predict", PICTURES[0], {**PNG, "Origin": "https://evil.example"})[0] == 403
    own = f"http://127.0.0.1:{client.port}"
    assert client.ask("POST", "/predict", PICTURES[0], {**PNG, "Origin": own})[0] == 200
    with served(run, token="a-token-of-16-letters") as guarded:
        assert guarded.ask("POST", "/predict", PICTURES[0], PNG)[0] == 401
        assert guarded.ask("GET", "/versions")[0] == 401 and guarded.ask("GET", "/health")[0] == 200
        bearer = {**PNG, "Authorization": "Bearer a-token-of-16-letters"}
        assert guarded.ask("POST", "/predict", PICTURES[0], bearer)[0] == 200


def test_feedback_becomes_data_for_an_update(run):
    with served(run) as client:
        assert client.form(("file", PICTURES[0]), ("label", "cat"), path="/feedback")[0] == 404
    with served(run, inbox=True) as client:
        for i, label in ((0, "heron"), (1, "swan"), (1, "swan")):
            status, body = client.form(("file", PICTURES[i]), ("label", label), path="/feedback")
        assert status == 200 and body == {"kept": False, "inbox": 2}
        status, body = client.form(("file", PICTURES[0]), ("label", "swan"), path="/feedback")
        assert (status, body["error"]) == (409, "this image is in the inbox as 'heron'")
        for wrong in ([("file", b"x"), ("label", "x")], [("file", PICTURES[0])], [("label", "x"), ("text", "x")]):
            assert client.form(*wrong, path="/feedback")[0] == 400
    with served(run, inbox=True) as client:  # started again, it knows what is there
        assert client.form(("file", PICTURES[2]), ("label", "swan"), path="/feedback")[1]["inbox"] == 3
    data = fitting(run / "inbox").build()
    assert data.candidates == ("heron", "swan") and sum(data.facts["counts"].values()) == 3


def test_questions_are_answered_and_what_is_not_about_images_is_not_served(tmp_path, monkeypatch):
    loaded = in_use(tmp_path / "run", "sefe")
    monkeypatch.setattr(following, "load", lambda *_, **__: loaded)
    with served(tmp_path / "run") as client:
        status, body = client.form(("file", PICTURES[0]), ("ask", "Color?"))
        assert status == 200 and body["predictions"][0]["question"] == "Color?"
        (own,) = loaded.predict([{"image": PICTURES[0], "text": "Color?"}])
        assert body["predictions"][0]["answer"] == own["answer"]
        assert client.form(("file", PICTURES[0]))[1]["predictions"] == [{"error": "there is no question"}]
        assert client.json({"text": "Color?"})[0] == 200
    searching = in_use(tmp_path / "searching", "rlcf_retrieval")
    monkeypatch.setattr(following, "load", lambda *_, **__: searching)
    with pytest.raises(RecipeError, match="answers are of kind retrieve"):
        make(tmp_path / "searching", Settings())
    carrying = in_use(tmp_path / "carrying", "rlcf_encoder", momentum=0.9)
    monkeypatch.setattr(following, "load", lambda *_, **__: carrying)
    with pytest.raises(RecipeError, match=r"an answer depends on the requests before it. Add --stateful"):
        make(tmp_path / "carrying", Settings())


def test_the_page_loads_nothing_from_elsewhere(client):
    status, page, headers = client.ask("GET", "/")
    text = page.decode()
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    assert not re.search(r"(src|href)=|https?://|@import|url\(", text.replace('nonce="', ""))
    nonce = re.search(r"'nonce-([\w-]+)'", headers["content-security-policy"])[1]
    assert text.count(f'nonce="{nonce}"') == 2 and "NONCE" not in text


def test_the_command_wants_a_token_that_is_one(tmp_path, capsys):
    (tmp_path / "token").write_text("short\n")
    with pytest.raises(SystemExit) as leaving:
        main(["serve", str(tmp_path), "--token-file", str(tmp_path / "token")])
    assert leaving.value.code == 2 and "Expected at least 16 ASCII" in capsys.readouterr().err
