"""A paper's table: methods down, metrics and streams across, in three forms; bold and published rows."""

from __future__ import annotations

import csv
import io
import json
import warnings

import pytest

from perdure.cli import main
from perdure.errors import DataError
from perdure.reporting import load, report, wide
from tests.reporting.fake_runs import falling, write_run

EXPECT = [{"metric": "average", "value": 91.5, "source": "Doe et al. 2020, Table 2", "note": "one seed"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two methods on two streams, three seeds; `good` beats `bad` on the first in every seed, and is unsure on the
    second. Published: of `good` on the first."""
    root = tmp_path_factory.mktemp("wide")
    for seed in range(3):
        for data, gap in (("digits_a", 5.0), ("digits_b", (-3.0, 0.1, 3.0)[seed])):
            for method, more in (("good", gap), ("bad", 0.0)):
                place = root / f"{method}_{data}_{seed}"
                expect = EXPECT if (method, data) == ("good", "digits_a") else None
                write_run(place, matrix=falling(3, start=80 + more, seed=seed), method=method, seed=seed, expect=expect)
                recipe = json.loads((place / "recipe.yaml").read_text())
                recipe["stream"]["data"] = data
                (place / "recipe.yaml").write_text(json.dumps(recipe))
    return root


def table(folder, *metrics):
    return wide.wide([load.read(one) for one in sorted(folder.iterdir()) if one.is_dir()], metrics)


def test_lines_are_methods_and_bold_is_what_the_report_decides(folder):
    found = table(folder, "average")
    assert found.streams == ["digits_a", "digits_b"] and found.metrics == ["average incremental accuracy (%) ↑"]
    assert [line.label for line in found.lines] == ["bad", "good", "good, published"]
    best = {(line.label, stream): v.best for line in found.lines for (_, stream), v in line.values.items()}
    assert [key for key, is_best in best.items() if is_best] == [("good", "digits_a")]
    theirs = found.lines[2]
    assert theirs.source == "Doe et al. 2020, Table 2; one seed"
    assert [(key[1], v.one.mean, v.one.n) for key, v in theirs.values.items()] == [("digits_a", 91.5, 0)]


def test_markdown_has_numbers_with_the_spread_that_was_asked_for(folder):
    found = table(folder, "average", "forgetting")
    text = wide.written(found, "markdown", "sd")
    head, _, bad, good, theirs = text.split("\n")[:5]
    assert head.startswith(
        "|method|average incremental accuracy (%) ↑: digits_a|average incremental accuracy (%) ↑: digits_b|forgetting"
    )
    one = found.lines[1].values["average incremental accuracy (%) ↑", "digits_a"].one
    assert f"|**{one.mean:.2f}** ± {one.spread:.2f}|" in good and "**" not in bad
    assert f"** ± {one.margin:.2f}|" in wide.written(found, "markdown", "ci")
    assert theirs == "|good, published [1]|91.50|–|–|–|"
    assert "[1] Doe et al. 2020, Table 2; one seed" in text and "standard deviation over seeds" in text


def test_latex_groups_columns_by_metric_and_escapes(folder):
    text = wide.written(table(folder, "average", "last"), "latex", "ci")
    assert "\\multicolumn{2}{c}{average incremental accuracy (\\%) $\\uparrow$}" in text
    assert "\\cmidrule(lr){2-3}\\cmidrule(lr){4-5}" in text
    assert "method & digits\\_a & digits\\_b & digits\\_a & digits\\_b \\\\" in text
    assert "good & \\textbf{" in text and "$\\pm$" in text and "% [1] Doe et al. 2020, Table 2; one seed" in text
    rows = [line for line in text.split("\n") if line.endswith("\\\\")]
    assert {line.count("&") for line in rows if "multicolumn" not in line} == {4}
    assert text.count("\\midrule") == 2  # below the heads, above published rows
    assert text.index("good, published") > text.rindex("\\midrule")


def test_csv_has_a_line_a_number(folder):
    rows = list(csv.DictReader(io.StringIO(wide.written(table(folder, "average"), "csv", "ci"))))
    assert len(rows) == 5 and {row["n"] for row in rows} == {"3", "0"}
    assert [row["source"] for row in rows if row["source"]] == ["Doe et al. 2020, Table 2; one seed"]
    assert sum(int(row["best"]) for row in rows) == 1


def test_settings_of_one_method_and_streams_of_the_same_data_are_told_apart(tmp_path):
    for i, (lr, step) in enumerate([(0.1, 2), (0.2, 2), (0.1, 5)]):
        place = write_run(tmp_path / str(i), matrix=falling(3), settings={"lr": lr})
        recipe = json.loads((place / "recipe.yaml").read_text())
        recipe["stream"]["increment"] = step
        (place / "recipe.yaml").write_text(json.dumps(recipe))
    found = table(tmp_path)
    assert found.streams == ["made_up_digits (increment=2)", "made_up_digits (increment=5)"]
    assert [line.label for line in found.lines] == ["made_up (lr=0.1)", "made_up (lr=0.2)"]
    assert [len(line.values) for line in found.lines] == [4, 2]


def test_a_metric_that_no_run_has_is_refused_and_the_nearest_named(folder):
    with pytest.raises(DataError, match=r"no run has a number `averag`.*Did you mean average"):
        table(folder, "averag")


def test_the_command_prints_the_table_alone_or_writes_it(folder, tmp_path, capsys):
    before = sorted(folder.iterdir())
    for words in (["--format", "latex"], ["--format", "csv", "--out", str(tmp_path)]):
        with pytest.raises(SystemExit) as left:
            main(["report", str(folder), "--table", "wide", "--metrics", "average,last", *words])
        assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "\\begin{tabular}" in shown and shown.endswith(f"{tmp_path / 'table.csv'}\n")
    assert sorted(folder.iterdir()) == before and (tmp_path / "table.csv").read_text().startswith("method,metric,")


def test_a_report_of_many_settings_has_room_for_its_figures(tmp_path):
    folders = [write_run(tmp_path / str(i), matrix=falling(3), settings={"lr": i / 10}) for i in range(1, 16)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of axes without room
        assert (report(folders, tmp_path / "out")["report.html"]).stat().st_size < 2**20
