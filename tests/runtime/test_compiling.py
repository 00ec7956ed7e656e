"""Compiled layers: which, that nothing else of a model changes, and when they run as written."""

import copy
import json

import pytest
import torch
from torch import nn

from perdure import api, recipe
from perdure.errors import RecipeError
from perdure.loop import run, seed_everything
from perdure.runtime import Runtime, compiling
from perdure.testing import tiny_stream
from tests.every_method import METHODS
from tests.methods.clip_methods import fresh_clip
from tests.toy import Config, Toy

RECIPE = """stream: {name: class_incremental, data: digits, step: 5, train_per_class: 10, test_per_class: 5}
models: {net: {name: mlp, inputs: 192, hidden: 8}}
method: {name: er, epochs: 1, batch_size: 8}
run: {device: cpu, threads: 1, compile: true}
"""


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(12, 12)

    def forward(self, x, *, cache=None):
        return x + torch.nn.functional.dropout(torch.tanh(self.inner(x)), 0.2, self.training)


class Cache:
    def get_seq_length(self):
        return 0


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that were compiled: traced by torch, and run as they were traced."""
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, "BACKEND", backend)
    compiling.require.cache_clear()
    yield found
    compiling.require.cache_clear()
    torch._dynamo.reset()


def stack() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(Layer(), Layer()), nn.Linear(12, 6))


def learned(net, **settings):
    seed_everything(0)
    runtime = Runtime(device="cpu", quiet=True, **settings)
    method = Toy(Config(epochs=1), net=net)
    return run(method, tiny_stream(), runtime=runtime).rows, method, runtime


def test_blocks_of_residual_networks_and_layers_of_towers_are_found():
    blocks = [type(layer).__name__ for layer in compiling.layers(METHODS["er"].roles["net"]())]
    assert blocks == ["Block"] * 4
    clip = fresh_clip().model
    towers = [*clip.text_model.encoder.layers, *clip.vision_model.encoder.layers]
    assert list(compiling.layers(clip)) == towers


def test_of_nested_lists_the_innermost_hold_the_layers_and_torchs_own_modules_are_none():
    net = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), stack(), stack()])
    assert [type(layer) for layer in compiling.layers(net)] == [Layer] * 4
    outer = nn.ModuleList([Holder(), Holder()])
    assert [type(layer) for layer in compiling.layers(outer)] == [Layer] * 4
    outer[0].never_compiled = True
    assert list(compiling.layers(outer)) == list(outer[1].held)


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.held = nn.ModuleList([Layer(), Layer()])


@pytest.mark.slow
def test_a_run_gives_the_same_scores_and_weights_with_layers_compiled(graphs):
    torch.manual_seed(0)
    net = stack()
    rows, method, runtime = learned(copy.deepcopy(net))
    assert (runtime.compiled_layers, graphs) == (0, [])
    compiled_rows, compiled, runtime = learned(net, compile=True)
    assert runtime.compiled_layers == 2 and len(graphs) > 1  # the first is the trial's
    assert compiled_rows == rows
    assert list(compiled.net.state_dict()) == list(method.net.state_dict())
    for ours, theirs in zip(compiled.net.parameters(), method.net.parameters()):
        torch.testing.assert_close(ours, theirs)


def test_classes_stay_and_copies_are_not_compiled(graphs):
    net = stack()
    assert compiling.compile_layers(net) == 2 and compiling.compile_layers(net) == 0
    assert [type(layer) for layer in net[0]] == [Layer, Layer]
    copy.deepcopy(net).eval()(torch.ones(2, 12))
    assert graphs == []


def test_within_a_transform_and_with_a_cache_layers_run_as_written(graphs):
    net = stack().eval()
    compiling.compile_layers(net)
    weights = {name: torch.stack([p, p]) for name, p in net.named_parameters()}
    each = torch.func.vmap(lambda w: torch.func.functional_call(net, w, (torch.ones(3, 12),)))(weights)
    net[0][0](torch.ones(3, 12), cache=Cache())
    assert graphs == []
    torch.testing.assert_close(each[1], net(torch.ones(3, 12)))
    assert graphs


def test_hooks_that_come_after_the_first_call_are_heard(graphs):
    net, heard = stack().eval(), []
    compiling.compile_layers(net)
    net(torch.ones(2, 12))
    hook = net[0][0].inner.register_forward_hook(lambda *_: heard.append(1))
    net(torch.ones(2, 12))
    hook.remove()
    net(torch.ones(2, 12))
    assert heard == [1]


def test_without_a_compiler_the_run_is_refused_before_models_are_built(tmp_path, monkeypatch):
    def backend(graph, inputs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiling, "BACKEND", backend)
    monkeypatch.setattr(recipe, "build_method", lambda *_: pytest.fail("models were built"))
    compiling.require.cache_clear()
    file = tmp_path / "q.yaml"
    file.write_text(RECIPE)
    with pytest.raises(RecipeError, match=r"run.compile: .* for cpu: .*No working C\+\+ compiler.*run.compile=false"):
        api.execute(recipe.load(file, [f"run.out={tmp_path}"]), quiet=True)


def test_a_run_may_go_on_with_layers_compiled_or_not(tmp_path):
    file = tmp_path / "q.yaml"
    file.write_text(RECIPE)
    assert recipe.differences(recipe.load(file), recipe.load(file, ["run.compile=false"])) == []


@pytest.mark.slow
def test_the_card_says_how_many_layers_were_compiled(tmp_path, graphs, monkeypatch):
    monkeypatch.setattr(compiling, "layers", lambda net: iter([net.fc1, net.fc2]))
    file = tmp_path / "q.yaml"
    file.write_text(RECIPE)
    compiled = api.execute(recipe.load(file, [f"run.out={tmp_path}"]), quiet=True)[0]
    plain = api.execute(recipe.load(file, [f"run.out={tmp_path}", "run.name=p", "run.compile=false"]), quiet=True)[0]
    cards = [json.loads((one.folder / "card.json").read_text()) for one in (compiled, plain)]
    assert [card["facts"]["compiled_layers"] for card in cards] == [2, 0]
    assert compiled.scores.rows == plain.scores.rows
