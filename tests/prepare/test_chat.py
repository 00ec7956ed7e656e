"""The endpoint, against a real HTTP server that works, fails, stalls and answers nonsense."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from perdure.cli import main
from perdure.prepare.chat import Endpoint, EndpointError, Journal, Request, ask_all


class Server:
    """Serves chat completions; `behave(number, body)` returns (status, bytes, headers) or sleeps."""

    def __init__(self, behave):
        server = self
        self.bodies, self.keys, self.lock = [], [], threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    number = len(server.bodies)
                    server.bodies.append(body)
                    server.keys.append(self.headers.get("Authorization"))
                status, data, headers = behave(number, body)
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client has given up

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()


def completion(text):
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode(), {}


def works(number, body):
    return completion("said: " + str(body["messages"][1]["content"]))


def endpoint(server, **settings):
    return Endpoint(base_url=server.url, name="m", **{"patience": 0.01, "parallel": 2, "timeout": 5, **settings})


def asks(n):
    return [Request(system="s", user=f"u{i}") for i in range(n)]


def test_replies_come_back_in_the_requests_order(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    with Server(works) as server:
        found = ask_all(endpoint(server, key_variable="SOME_KEY"), asks(6), Journal())
    assert [text for text, _ in found] == [f"said: u{i}" for i in range(6)]
    assert set(server.keys) == {"Bearer secret"}
    assert {b["model"] for b in server.bodies} == {"m"} and server.bodies[0]["messages"][0]["content"] == "s"


def test_an_image_is_sent_as_data_and_a_missing_one_fails_alone(tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    requests = [Request(system="s", user="u", image=tmp_path / name) for name in ("a.png", "b.png")]
    with Server(lambda n, b: completion("ok")) as server:
        found = ask_all(endpoint(server), requests, Journal())
    url = server.bodies[0]["messages"][1]["content"][0]["image_url"]["url"]
    assert url == "data:image/png;base64,cG5n" and found[0][0] == "ok"
    assert found[1][0] is None and "b.png cannot be read" in found[1][1]


def test_failures_that_pass_are_tried_again():
    def behave(number, body):
        if number < 2:
            return (503, b"busy", {}) if number else (429, b"slow down", {"Retry-After": "0.01"})
        return completion("ok")

    with Server(behave) as server:
        found = ask_all(endpoint(server, parallel=1), asks(1), Journal())
    assert found == [("ok", "")] and len(server.bodies) == 3


def test_a_broken_reply_is_tried_again_then_given_up():
    with Server(lambda n, b: (200, b'{"choices": [', {})) as server:
        found = ask_all(endpoint(server, retries=2), asks(1), Journal())
    assert found[0][0] is None and "no chat completion" in found[0][1] and len(server.bodies) == 3


def test_a_stalling_server_is_given_up_after_the_time_limit():
    def behave(number, body):
        time.sleep(1.5)
        return completion("late")

    with Server(behave) as server:
        began = time.monotonic()
        found = ask_all(endpoint(server, timeout=0.2, retries=1), asks(1), Journal())
    assert found[0][0] is None and "no answer" in found[0][1]
    assert time.monotonic() - began < 10


def test_a_refused_key_stops_at_once_and_says_which_variable():
    with Server(lambda n, b: (401, b"who are you", {})) as server, pytest.raises(EndpointError) as error:
        ask_all(endpoint(server, key_variable="MY_KEY"), asks(50), Journal())
    assert "HTTP 401: who are you" in str(error.value) and "MY_KEY" in str(error.value)
    assert len(server.bodies) < 10


def test_a_bad_request_fails_alone():
    def behave(number, body):
        bad = body["messages"][1]["content"] == "u1"
        return (400, b"too long", {}) if bad else completion("ok")

    with Server(behave) as server:
        found = ask_all(endpoint(server), asks(3), Journal())
    assert [text for text, _ in found] == ["ok", None, "ok"] and "too long" in found[1][1]


def test_an_endpoint_that_is_down_is_said_so_and_the_next_pass_goes_on(tmp_path):
    state = {"up": 3}

    def behave(number, body):
        if number >= state["up"]:
            return 500, b"down", {}
        return works(number, body)

    with Server(behave) as server:
        chat = endpoint(server, parallel=1, retries=0, give_up_after=3)
        with pytest.raises(EndpointError, match="3 requests failed in a row"):
            ask_all(chat, asks(20), Journal(tmp_path / "j.jsonl"))
        state["up"] = 10**6
        before = len(server.bodies)
        found = ask_all(chat, asks(20), Journal(tmp_path / "j.jsonl"))
    assert [text for text, _ in found] == [f"said: u{i}" for i in range(20)]
    assert len(server.bodies) - before == 17


def test_nothing_at_the_address_is_an_endpoint_that_is_down():
    chat = Endpoint(base_url="http://127.0.0.1:9/v1", name="m", retries=0, give_up_after=2, parallel=1)
    with pytest.raises(EndpointError, match="no answer"):
        ask_all(chat, asks(5), Journal())
    with pytest.raises(EndpointError, match="this is no address"):
        Endpoint(base_url="localhost", name="m")


def test_the_rate_is_kept():
    with Server(works) as server:
        began = time.monotonic()
        ask_all(endpoint(server, per_minute=600, parallel=4), asks(4), Journal())
    assert time.monotonic() - began >= 0.25


def test_the_command_writes_the_file_and_its_manifest_and_asks_nothing_twice(tmp_path, capsys):
    folder = tmp_path / "annotations" / "VizWiz"
    folder.mkdir(parents=True)
    rows = [
        {"id": i, "conversations": [{"from": "human", "value": f"What {i}?"}, {"from": "gpt", "value": f"t{i}"}]}
        for i in range(40)
    ]
    (folder / "train.json").write_text(json.dumps(rows))

    def behave(number, body):
        from test_asd import written

        return completion(written(body["messages"][1]["content"]))

    with Server(behave) as server:
        command = f"prepare asd --root {tmp_path} --task VizWiz --share 20 --endpoint {server.url} --model m"
        for _ in range(2):
            with pytest.raises(SystemExit) as left:
                main(command.split())
            assert left.value.code == 0
        assert len(server.bodies) == 8
    manifest = json.loads((folder / "train_x20.manifest.json").read_text())
    assert manifest["styles"] == {"short": 32, "yn": 2, "mcq": 2, "brief": 2, "detail": 2}
    assert len(json.loads((folder / "train_x20.json").read_text())) == 40
    assert "VizWiz: 40 records" in capsys.readouterr().out
    assert manifest["model"] == "m" and manifest["share_percent"] == 20


def test_the_command_names_wrong_arguments(tmp_path, capsys):
    for arguments, said in (
        (["prepare", "asd", "--root", str(tmp_path), "--task", "GQ"], "CoIN has no task 'GQ'"),
        (["prepare", "asd", str(tmp_path / "a.json")], "--kind is needed"),
        (["prepare", "asd", str(tmp_path / "a.json"), "--kind", "question"], "there is no such file"),
        (["prepare", "asd"], "give a training file and --kind"),
        (["prepare", "asd", "a.json", "--kind", "question", "--model", "m"], "Add --endpoint"),
    ):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2 and said in capsys.readouterr().err


def test_upstream_predictions_become_records_that_score_reads(tmp_path, capsys):
    (tmp_path / "test.json").write_text(
        json.dumps([{"question_id": 1, "answer": "cat"}, {"question_id": 2, "answer": "dog"}])
    )
    lines = [{"question_id": 1, "prompt": "p", "text": "Cat"}, {"question_id": 2, "prompt": "p", "text": "cow"}]
    (tmp_path / "merge.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    out = tmp_path / "records.jsonl"
    for arguments in (
        f"prepare predictions {tmp_path}/merge.jsonl --task vqav2 --answers {tmp_path}/test.json --out {out}",
        f"score {out} --metric answer_accuracy",
    ):
        with pytest.raises(SystemExit) as left:
            main(arguments.split())
        assert left.value.code == 0
    assert "50.00" in capsys.readouterr().out
