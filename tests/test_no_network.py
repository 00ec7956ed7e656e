"""The suite itself: nothing in it reaches beyond this machine."""

import socket
import threading
import urllib.request

import pytest


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.org"])
def test_a_connection_beyond_this_machine_fails_even_where_errors_are_caught(host):
    try:
        with pytest.raises(pytest.fail.Exception, match="asked for the network"):
            socket.create_connection((host, 80), timeout=0.1)
    except OSError as error:
        raise AssertionError("it was tried") from error


def test_libraries_that_look_up_names_are_caught():
    with pytest.raises(pytest.fail.Exception):
        urllib.request.urlopen("https://huggingface.co", timeout=0.1)


def test_this_machine_may_be_asked():
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        with socket.create_connection(server.getsockname(), timeout=5) as connection:
            assert connection.recv(1) == b""
