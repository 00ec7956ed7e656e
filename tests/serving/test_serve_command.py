"""`perdure serve` as people start it: a process that answers, and ends when it is told to."""

import signal
import socket
import subprocess
import sys
import time

import pytest

from perdure import api, prediction
from tests.served import Client
from tests.updating import pictures

pytestmark = pytest.mark.slow


def test_the_command_answers_until_it_is_told_to_stop(tmp_path):
    base = pictures.folder(tmp_path / "base", "ant bee cat dog")
    run = api.execute(pictures.asked(base, tmp_path / "runs"), quiet=True)[0].folder
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        client = Client(free.getsockname()[1])
    command = [sys.executable, "-m", "perdure", "serve", str(run), "--port", str(client.port), "--device", "cpu"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 90
        while time.monotonic() < until and server.poll() is None:
            try:
                assert client.ask("GET", "/health")[0] == 200
                break
            except OSError:
                time.sleep(0.1)
        picture = base / "cat" / "0.png"
        status, body = client.form(("file", picture.read_bytes()), ("top", "4"))
        (own,) = prediction.load(run, device="cpu").predict(picture, top=4)
        assert status == 200
        assert [a["class"] for a in body["predictions"][0]["answers"]] == [a["class"] for a in own["answers"]]
    finally:
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=60)
    assert (server.returncode, out) == (-signal.SIGTERM, "")  # after it has ended in order
    assert "Application shutdown complete" in err and "Traceback" not in err
