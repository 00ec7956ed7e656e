"""Versions behind a server: promoted over HTTP, asked in the shadow, in memory once where they are the same."""

import re

import pytest
import torch

from perdure.cli import main
from perdure.run_folder import versions
from perdure.runtime.placing import modules
from perdure.serving.app import Settings, make
from perdure.serving.sharing import share
from tests.every_method import METHODS
from tests.in_use import in_use
from tests.served import picture, serving
from tests.serving.test_serving import PICTURES, expected, served, told, wait_for

TOKEN = "a-token-of-16-letters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def test_who_has_the_token_promotes_where_that_is_allowed(run):
    with served(run, token=TOKEN) as client:
        assert client.ask("POST", "/versions/2/promote", headers=BEARER)[0] == 404
    with served(run, token=TOKEN, promote=True) as client:
        assert client.ask("POST", "/versions/2/promote")[0] == 401 and versions.current(run) == 1
        for wanted, status in (("9", 404), ("x", 400), ("1", 409)):
            assert client.ask("POST", f"/versions/{wanted}/promote", headers=BEARER)[0] == status
        status, body, _ = client.ask("POST", "/versions/2/promote", headers=BEARER)
        assert (status, body) == (200, {"promoted": 2}) and versions.pointer(run)["history"][-1][
            "by"
        ] == "perdure serve"
        wait_for(lambda: client.ask("GET", "/health")[1]["version"] == 2)
        assert client.form(("file", PICTURES[0]), **BEARER)[1]["version"] == 2
        assert client.ask("GET", "/versions", headers=BEARER)[1]["promote"]


def test_promotion_wants_a_token_and_a_shadow_a_version(tmp_path, capsys):
    for arguments, said in ((["--allow-promote"], "anyone could promote"), (["--shadow", "next"], "is 'next'")):
        with pytest.raises(SystemExit) as leaving:
            main(["serve", str(tmp_path), *arguments])
        assert leaving.value.code == 2 and said in capsys.readouterr().err


def test_a_candidate_is_asked_in_the_shadow_and_answers_nobody(run, models):
    def counted(client):
        text = client.ask("GET", "/metrics")[1].decode()
        found = re.findall(r'^perdure_shadow_inputs_total{answer="(\w+)",version="(\d)"} (\S+)', text, re.M)
        return {(int(version), answer): float(number) for answer, version, number in found}

    with served(run, shadow="candidate") as client:
        assert client.ask("GET", "/versions")[1]["shadow"] == 2
        for image in PICTURES:
            status, body = client.form(("file", image))
            assert (status, body["version"]) == (200, 1) and told(body["predictions"][0]) == expected(models[1], image)
        wait_for(lambda: sum(counted(client).values()) == len(PICTURES))
        own = [[models[n].predict([image], top=1)[0]["answers"][0]["class"] for image in PICTURES] for n in (1, 2)]
        same = sum(a == b for a, b in zip(*own))
        assert (
            counted(client).get((2, "same"), 0) == same and counted(client).get((2, "other"), 0) == len(PICTURES) - same
        )
        batches = client.ask("GET", "/metrics")[1].decode()
        assert f"perdure_batch_inputs_sum {len(PICTURES)}.0" in batches  # the shadow's are not counted with them
        versions.point(run, 2, by="a test")  # there is no candidate any more
        wait_for(lambda: client.ask("GET", "/versions")[1]["shadow"] is None)
    with served(run) as client:
        assert client.ask("GET", "/versions")[1]["shadow"] is None


def test_what_waits_goes_before_the_shadow_which_is_skipped_when_there_is_no_time(run):
    app = make(run, Settings(shadow="2", max_batch=4))
    with serving(app) as client:
        service = app.state.service
        service.batcher.submit_idle = lambda jobs: 0
        client.form(("file", PICTURES[0]))
        assert 'answer="skipped",version="2"} 1.0' in client.ask("GET", "/metrics")[1].decode()


def test_frozen_weights_of_two_versions_are_in_memory_once_and_answers_stay(tmp_path):
    one, two = (in_use(tmp_path / str(n), "mg_clip", version=n, **more) for n, more in ((1, {}), (2, {"lr": 0.05})))
    images = [picture(i) for i in range(3)]
    before = [version.predict(images) for version in (one, two)]
    kept = {id(t): t.clone() for version in (one, two) for t in tensors(version).values()}
    shared = share(two.opened.method, one.opened.method)
    mine, theirs = tensors(two), tensors(one)
    common = [path for path in mine if mine[path].data_ptr() == theirs[path].data_ptr()]
    assert shared == sum(mine[path].numel() * mine[path].element_size() for path in common) > 0
    assert {path for path in mine if torch.equal(mine[path], theirs[path]) and mine[path].numel()} == {*common}
    assert len(common) < len(mine)  # what was learned is each one's own
    assert all(torch.equal(t, kept[id(t)]) for version in (one, two) for t in tensors(version).values())
    assert [version.predict(images) for version in (one, two)] == before
    assert share(two.opened.method, one.opened.method) == 0  # again: there is nothing more


def tensors(version):
    found = modules(version.opened.method).items()
    both = [(path, (*module.named_parameters(), *module.named_buffers())) for path, module in found]
    return {f"{path}.{name}": tensor for path, listed in both for name, tensor in listed}


def test_methods_that_adapt_share_nothing():
    one, two = METHODS["tpt_prompt"].make(), METHODS["tpt_prompt"].make()
    assert share(one, two) == 0
