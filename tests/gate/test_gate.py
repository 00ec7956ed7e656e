"""The gate's arithmetic by hand, and what it decides over records."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from perdure import gate
from perdure.errors import PerdureError
from perdure.gate import Asked, Gate, paired


def records(right, n, *, first=0, wrong=1):
    """`n` examples of class 0, of which those numbered in `right` are answered."""
    return [
        {"id": f"e{i}", "target": 0, "predicted": 0 if i in right else wrong, "confidence": 0.9}
        for i in range(first, first + n)
    ]


def asked(lost, won, n, name="old"):
    before, after = set(range(won, n)), {*range(won), *range(won + lost, n)}
    return Asked(name=name, metric="accuracy", before=records(before, n), after=records(after, n), classes=("a", "b"))


LEARNED = Asked(
    name="new", metric="accuracy", before=records((), 20), after=records(range(20), 20), classes=tuple("abcd")
)


def retention(lost, won, n, **settings):
    found = gate.judge(Gate(mean=None, **settings), earlier=[asked(lost, won, n)], new=LEARNED)
    return next(rule for rule in found["rules"] if rule["rule"] == "retention")


def test_ten_lost_and_two_won_of_200_are_four_points_and_no_chance():
    rule = retention(10, 2, 200)
    assert rule["difference"] == -4.0 and round(rule["p"], 4) == 0.0386 and rule["outcome"] == "failed"


def test_without_a_difference_200_examples_prove_two_points_and_100_do_not():
    assert retention(0, 0, 200)["outcome"] == "passed" and retention(0, 0, 100)["outcome"] == "held"
    assert retention(0, 0, 100, retention=3.0)["outcome"] == "passed"


def test_losses_that_may_be_chance_are_held_and_large_ones_fail():
    assert retention(3, 0, 50)["outcome"] == "held"
    assert retention(12, 0, 50)["outcome"] == "failed"


def test_the_interval_ends_where_the_score_statistic_is_the_quantile():
    """Against Tango's definition: the variance at the most likely shares under a difference, found by search."""

    def likely(d, lost, won, n):
        def loss(share):  # of lost ones; of won ones share + d; the rest do not differ
            parts = ((lost, share), (won, share + d), (n - lost - won, 1 - 2 * share - d))
            return -sum(k * math.log(max(p, 1e-300)) for k, p in parts if k)

        low, high = max(0.0, -d), (1 - d) / 2
        share = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        return (won - lost - n * d) / math.sqrt(n * (2 * share + d - d * d))

    for lost, won, n in ((10, 2, 200), (3, 8, 60), (1, 0, 40)):
        low, high = paired.interval(lost, won, n)
        assert likely(low, lost, won, n) == pytest.approx(paired.SURE, abs=2e-3)
        assert likely(high, lost, won, n) == pytest.approx(-paired.SURE, abs=2e-3)
    z = paired.SURE**2
    assert paired.interval(0, 0, 200) == pytest.approx((-z / (200 + z), z / (200 + z)))


def test_grades_between_right_and_wrong_get_a_bootstrap_that_hangs_on_its_key():
    before, after = [0.5, 1.0, 0.2, 0.9] * 20, [0.6, 1.0, 0.1, 0.9] * 20
    found = paired.compare(before, after, "captions")
    assert found == paired.compare(before, after, "captions") and found.p is None
    assert found.low < found.value < found.high and found.value == pytest.approx(0.0)
    assert paired.compare(before, [b + 0.05 for b in before], "x").low == pytest.approx(0.05)


def test_what_is_needed_and_what_is_provable():
    assert paired.examples_needed(0.02) == 774 and round(100 * paired.provable_margin(200), 1) == 3.9
    said = gate.power(Gate(), {"birds": 200, "cars": 0})
    assert "birds: 200 kept examples; proves a loss below 3.9 points" in said[0] and "proves nothing" in said[1]


def test_the_new_task_must_be_learned_by_more_than_chance():
    def outcome(before, after, **settings):
        new = Asked(name="new", metric="accuracy", before=before, after=after, classes=tuple("abcd"))
        return gate.judge(Gate(**settings), earlier=[], new=new)["outcome"]

    assert outcome(records((), 20), records(range(20), 20)) == "passed"
    assert outcome(records((), 20), records(range(4), 20)) == "failed"  # 20 %; twice the chance is 50 %
    assert outcome(records((), 20), records(range(4), 20), min_learned=10.0) == "held"  # four of 20 may be chance
    assert outcome(None, records(range(12), 20)) == "passed"


def test_tasks_of_which_no_test_was_kept_hold_the_gate_and_are_named():
    lost = Asked(name="gone", metric="accuracy", before=None, after=[])
    found = gate.judge(Gate(), earlier=[lost], new=LEARNED)
    assert found["outcome"] == "held" and found["unknown"] == ["gone"]
    assert gate.judge(Gate(retention=None), earlier=[lost], new=LEARNED)["outcome"] == "passed"


def test_examples_that_must_stay_right_and_what_turned_wrong_by_class():
    found = gate.judge(Gate(retention=20.0, mean=None, must=("e0",)), earlier=[asked(1, 0, 200)], new=LEARNED)
    assert [rule["outcome"] for rule in found["rules"] if rule["rule"] == "must"] == ["failed"]
    assert found["turned_wrong"] == [{"task": "old", "id": "e0", "target": "a", "before": "a", "after": "b"}]
    assert found["classes"][0] == {"task": "old", "class": "a", "n": 200, "before": 100.0, "after": 99.5}


def test_a_gate_file_is_checked(tmp_path):
    file = tmp_path / "gate.yaml"
    file.write_text("retention: 1.5\nmust: [a/1.jpg]\n")
    assert gate.read(file) == Gate(retention=1.5, must=("a/1.jpg",)) and gate.read(None) == Gate()
    for text in ("retentoin: 1", "retention: 200", "retention: [", "- 1"):
        file.write_text(text)
        with pytest.raises(PerdureError, match=r"gate\.yaml"):
            gate.read(file)


# -- groups, several tests, cost ----------------------------------------------------------------------------


def grouped(lost, n, size):
    """`n` examples in groups of `size`, the first `lost` of which turn wrong."""
    named = [str(i // size) for i in range(n)]
    before, after = records(range(n), n), records(range(lost, n), n)
    both = [[row | {"group": name} for row, name in zip(some, named)] for some in (before, after)]
    return Asked(name="old", metric="accuracy", before=both[0], after=both[1], classes=("a", "b"))


def test_examples_of_one_group_are_worth_less_than_as_many_of_their_own():
    def rule(asked, **settings):
        found = gate.judge(Gate(mean=None, **settings), earlier=[asked], new=LEARNED)["rules"]
        return next(row for row in found if row["rule"] == "retention")

    alone, together = rule(asked(10, 0, 400)), rule(grouped(10, 400, 10))
    assert alone["difference"] == together["difference"] == -2.5
    assert together["groups"] == 40 and together["low"] < alone["low"] - 1  # a whole patient was lost, of forty
    assert together["p"] is None and "groups" not in alone
    assert rule(grouped(0, 400, 1))["low"] == rule(asked(0, 0, 400))["low"]  # groups of one are no groups
    assert rule(grouped(0, 400, 10))["low"] == rule(asked(0, 0, 40))["low"]  # nothing lost: what 40 examples prove
    assert rule(grouped(0, 400, 100), retention=50.0)["outcome"] == "held"  # four groups tell nothing of others


def test_the_design_effect_by_hand():
    moved = np.array([-1.0, -1.0, 0.0, 0.0])  # two groups of two, one lost: deviations -1/2 and 1/2
    # with groups: 2/1 ((-1)^2 + 1^2) = 4; without: 4/3 (4 / 4) = 4/3
    assert paired.design_effect(moved, np.array([0, 0, 1, 1])) == pytest.approx(3.0)
    assert paired.design_effect(moved, np.array([0, 1, 0, 1])) == 1.0  # one of each: as if each stood for itself
    assert paired.design_effect(np.zeros(6), np.array([0, 0, 0, 1, 1, 1])) == 3.0
    grades = [[0.5] * 60, [0.5 - 0.3 * (i < 6) for i in range(60)]]
    in_groups, alone = (paired.compare(*grades, "x", groups=g) for g in ([str(i // 6) for i in range(60)], []))
    assert in_groups.low < alone.low


def test_no_one_group_may_lose_more_than_its_rule_says():
    found = gate.judge(Gate(retention=50.0, mean=None, groups=20.0), earlier=[grouped(10, 100, 10)], new=LEARNED)
    rows = {row["task"]: row["outcome"] for row in found["rules"] if row["rule"] == "groups"}
    assert len(rows) == 10 and rows["old: 0"] == "failed" and {*rows.values()} == {"failed", "held"}
    assert found["outcome"] == "failed"
    plain = gate.judge(Gate(retention=50.0, mean=None, groups=20.0), earlier=[asked(1, 0, 100)], new=LEARNED)
    assert not [row for row in plain["rules"] if row["rule"] == "groups"]  # nothing says what the groups are


def test_one_loss_by_chance_among_many_tasks_is_held_and_not_failed():
    assert paired.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and paired.holm([]) == []
    alone = gate.judge(Gate(mean=None), earlier=[asked(8, 1, 200)], new=LEARNED)["rules"][0]
    assert (alone["outcome"], round(alone["p"], 3)) == ("failed", 0.039) and "p_holm" not in alone
    many = gate.judge(
        Gate(mean=None), earlier=[asked(8, 1, 200), *[asked(0, 0, 200, str(i)) for i in range(9)]], new=LEARNED
    )
    first = many["rules"][0]
    assert (first["outcome"], round(first["p_holm"], 2)) == ("held", 0.39) and first["p"] == alone["p"]


def test_a_version_may_cost_no_more_than_is_said():
    def judged(cost, **settings):
        return gate.judge(Gate(**settings), earlier=[], new=LEARNED, cost=cost)

    cost = {"bytes": [100, 160], "seconds": [0.01, 0.012]}
    rows = {row["rule"]: row for row in judged(cost, size=1.5, seconds=1.3)["rules"]}
    assert rows["size"]["outcome"] == "failed" and rows["size"]["times"] == 1.6
    assert rows["seconds"]["outcome"] == "passed" and rows["seconds"]["times"] == 1.2
    assert judged(cost)["outcome"] == "passed" and "grown 1.6 times" in judged(cost)["warnings"][0]
    assert judged({}, seconds=1.3)["outcome"] == "held"  # nothing was measured
    assert judged(cost)["cost"] == cost


def test_what_cannot_be_told_is_said_to_be_held_back():
    from perdure.cli.update import verdict_lines

    row = {"rule": "retention", "task": "old", "n": 9, "outcome": "held"}
    lines = verdict_lines({"rules": [row], "unknown": [], "classes": [], "turned_wrong": []})
    assert lines[1].endswith("held back")
