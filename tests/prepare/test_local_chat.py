"""A local chat model: a tiny random Llama, read from its folder."""

import pytest
from tiny_instruction import byte_tokenizer, tiny_parts

from perdure.prepare.chat import EndpointError, Journal, LocalChat, Request, ask_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("chat")
    decoder, _ = tiny_parts()
    decoder.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def test_answers_do_not_depend_on_what_is_asked_with_them(folder):
    requests = [Request(system="s", user="u" * n) for n in (3, 30, 11)]
    found = {
        size: ask_all(LocalChat(name=str(folder), batch_size=size, max_new_tokens=5), requests, Journal())
        for size in (1, 3)
    }
    assert found[1] == found[3] and all(isinstance(text, str) for text, _ in found[1])


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(EndpointError, match="no chat model can be read"):
        ask_all(LocalChat(name=str(tmp_path)), [Request(system="s", user="u")], Journal())
