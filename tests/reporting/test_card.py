"""The result card: what it holds and how two differ."""

import json
import subprocess

import perdure
from perdure.reporting import compare_cards, make_card
from perdure.reporting.card import git_state, identity, own_state

SCORES = {
    "tasks": ["one", "two"],
    "headline": "accuracy",
    "rows": [
        {"after": -1, "asked": 0, "n": 3, "values": {"accuracy": 12.5}},
        {"after": 0, "asked": 0, "n": 3, "values": {"accuracy": 100 * 2 / 3}},
        {"after": 1, "asked": 0, "n": 3, "values": {"accuracy": 0.0}},
        {"after": 1, "asked": 1, "n": 4, "values": {"accuracy": 75.0}},
    ],
}


def card(**changed):
    parts = {
        "recipe": {"method": {"name": "m", "lr": 0.1}, "run": {"seed": 0}},
        "scores": SCORES,
        "weights": {"clip": {"source": "x", "sha256": "1"}},
        "data": {"d": {"train": 3}},
        "stream": {"class_order": [1, 0]},
        "seeds": {"seed": 0},
        "precision": "float32",
        "device": "cpu",
        "wall_seconds": 1.23456,
        "peak_memory": {"resident": 5},
        "facts": {"extra_parameters": 7, "rank": 8},
    }
    return make_card(**{**parts, **changed})


def test_a_card_is_json_and_keeps_the_raw_matrix():
    made = card()
    assert json.loads(json.dumps(made)) == made
    assert made["accuracy_matrix"] == {
        "metric": "accuracy",
        "values": [[100 * 2 / 3, None], [0.0, 75.0]],
        "n": [[3, 0], [3, 4]],
        "initial": [12.5, None],
    }
    assert (made["method"], made["extra_parameters"], made["facts"]) == ("m", 7, {"rank": 8})
    assert made["versions"]["python"] and made["versions"]["torch"]


def test_cards_differ_in_what_was_asked_and_if_wanted_in_what_was_measured():
    other = card(
        recipe={"method": {"name": "m", "lr": 0.2}, "run": {"seed": 0}},
        weights={"clip": {"source": "x", "sha256": "2"}},
        wall_seconds=9.0,
    )
    assert compare_cards(card(), card()) == []
    assert compare_cards(card(), other) == [
        ("recipe.method.lr", 0.1, 0.2),
        ("weights.clip.sha256", "1", "2"),
    ]
    assert "wall_seconds" in [d.field for d in compare_cards(card(), other, measured=True)]


def test_the_order_of_settings_does_not_change_the_hash_of_a_recipe():
    a, b = card(recipe={"method": "m", "x": 1}), card(recipe={"x": 1, "method": "m"})
    assert a["recipe_sha256"] == b["recipe_sha256"] != card()["recipe_sha256"]


def test_weights_are_the_same_by_hash_wherever_the_file_lies():
    assert identity({"source": "/a", "sha256": "1"}) == identity({"source": "/b", "sha256": "1"})
    assert identity({"source": "/a"}) != identity({"source": "/b"})


def test_outside_a_work_tree_there_is_no_git_state(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None


def test_a_card_says_perdure_s_own_version_and_commit_beside_the_folder_s(tmp_path):
    def repository(folder, *more):
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        for command in (("init", "-q"), *more, (*who, "commit", "-q", "--allow-empty", "-m", "x")):
            subprocess.run(["git", "-C", str(folder), *command], check=True)
        return subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True).stdout

    mine = repository(tmp_path / "mine").strip()
    source = repository(tmp_path / "source", ("add", ".")).strip()
    made = card(repository=tmp_path / "mine")["git"]
    assert made["folder"] == {"commit": mine, "changed": False}
    assert made["perdure"]["version"] == perdure.__version__
    assert own_state(tmp_path / "source") == {"version": perdure.__version__, "commit": source, "changed": False}
    # installed in the folder of a project that does not track it
    assert own_state(tmp_path / "mine") == {"version": perdure.__version__}
