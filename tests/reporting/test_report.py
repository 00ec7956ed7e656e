"""The report's files: self-contained, repeatable, readable, honest."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_runs import falling, write_run

from perdure.errors import DataError
from perdure.reporting import drawing, figures, html, load, markdown, plain, published, report, tables, wide
from perdure.reporting.terminal import terminal


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Two methods, three seeds, four tasks; every figure has data."""
    base = tmp_path_factory.mktemp("runs")
    tasks = ["digits 0-1", "<script>alert(1)</script>", "cost $5 or $6", "a | b"]
    common = {"tasks": tasks, "gap": True, "initial": [9.0, 10.0, 11.0, 12.0]}
    expect = [
        {"metric": "average", "value": 90.0, "source": "An Abstract"},
        {"metric": "last", "value": 70.0, "source": "A Paper, table 3", "note": "other weights"},
        {"metric": "cider", "value": 1.0, "source": "Elsewhere"},
    ]
    runs = [
        write_run(base / f"{m}-{s}", matrix=falling(4, loss=x, seed=s), method=m, seed=s, expect=expect, **common)
        for m, x in (("keeps", 1.0), ("loses", 9.0))
        for s in range(3)
    ]
    return runs, report(runs, base / "out")


class Page(HTMLParser):
    """Tags with their attributes, the addresses that a browser fetches, and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def read(paths):
    return Page(paths["report.html"].read_text())


def test_the_page_is_one_file_of_at_most_a_megabyte_that_fetches_nothing(pages):
    _, paths = pages
    text = paths["report.html"].read_text()
    assert paths["report.html"].stat().st_size <= 1_000_000
    assert "http://" not in text.replace("http://www.w3.org/", "") and "https://" not in text
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    page = Page(text)
    assert not page.all("script") and not page.all("link") and not page.all("img") and not page.all("iframe")
    assert all(a["href"].startswith(("data:", "#")) for a in page.all("a"))


def test_the_page_says_where_its_numbers_are_explained_and_they_are(pages):
    assert "What each number means: docs/scores.md" in pages[1]["report.html"].read_text(encoding="utf-8")
    explained = (Path(__file__).parents[2] / "docs" / "scores.md").read_text(encoding="utf-8").lower()
    for title in tables.AGGREGATES.values():
        name = title.replace("{}", "").split("(")[0].partition(",")[0].strip().lower()
        assert f"**{name}" in explained, title


def test_the_same_runs_give_the_same_bytes(pages, tmp_path):
    runs, paths = pages
    again = report(runs, tmp_path)
    assert {n: p.read_bytes() for n, p in paths.items()} == {n: p.read_bytes() for n, p in again.items()}


def test_every_figure_has_a_name_a_table_and_its_files(pages):
    page = read(pages[1])
    drawings = [a for a in page.all("svg") if a.get("role") == "img"]
    assert len(drawings) == len(page.all("svg")) == len(page.all("figure")) == 7
    assert all(len(a["aria-label"]) > 30 for a in drawings)
    names = [a["download"] for a in page.all("a") if "download" in a]
    assert sorted(names) == sorted(f"{a['id']}.{e}" for a in page.all("figure") for e in ("svg", "csv"))


def test_every_table_has_headers_and_every_id_is_its_own(pages):
    text = pages[1]["report.html"].read_text()
    for table in re.findall(r"<table>.*?</table>", text, flags=re.DOTALL):
        assert 'scope="col"' in table and 'scope="row"' in table
    page = Page(text)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)
    assert {a.get("lang") for a in page.all("html")} == {"en"} and len(page.all("h1")) == 1


def test_names_of_classes_are_text_never_markup(pages):
    _, paths = pages
    assert "<script" not in paths["report.html"].read_text()
    assert "<script>alert(1)</script>" in read(paths).text
    assert "cost $5 or $6" in read(paths).text


def test_text_stands_out_from_its_ground():
    """At least 4.5:1 (WCAG AA), light and dark."""
    style = (html.Path(html.__file__).parent / "templates" / "report.html.j2").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in style.split("@media (prefers-color", 1))
    for colors in (light, dark):
        for ground in ("paper", "tint"):
            for ink in ("ink", "soft", "link", "best"):
                assert contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)
        assert contrast(colors["ink"], colors["warn"]) >= 4.5


def test_numbers_in_a_heat_map_stand_out_from_their_cells():
    from matplotlib import colormaps

    for value in range(101):
        shade = drawing.luminance(colormaps["cividis"](value / 100)[:3])
        ink = 1.0 if shade < 0.179 else 0.0
        assert (max(shade, ink) + 0.05) / (min(shade, ink) + 0.05) >= 4.5


def contrast(a, b):
    light, dark = sorted(
        (drawing.luminance([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for c in (a, b)), reverse=True
    )
    return (light + 0.05) / (dark + 0.05)


def test_a_winner_is_marked_only_from_three_seeds_on(pages):
    runs, paths = pages
    assert "★ " in read(paths).text.replace("Bold and ★:", "") and "**" in paths["report.md"].read_text()
    two = tables.groups([load.read(run) for run in runs if not run.name.endswith("2")])
    assert "**" not in markdown.markdown(two)
    assert 'class="best"' not in html.html(two)
    assert "undecided: 2 shared seeds; a verdict needs 3" in markdown.markdown(two)


def test_published_numbers_stand_beside_ours_with_their_source(pages):
    groups = tables.groups([load.read(run) for run in pages[0][:3]])
    average, last, unknown = published.published(groups[0])
    ours = {n.aggregate: s.mean for n, s in groups[0].summaries.items()}
    assert average.difference == pytest.approx(ours["average"] - 90)
    assert (last.ours.mean, last.source) == (ours["last"], "A Paper, table 3")
    assert unknown.ours is None and unknown.difference is None
    for text in (read(pages[1]).text, pages[1]["report.md"].read_text()):
        assert "A Paper, table 3" in text and "other weights" in text


def test_what_a_run_changes_stands_beside_published_numbers_and_other_data_leave_them_out(tmp_path):
    def group(name, **stated_with):
        expect = [{"metric": "last", "value": 74.05, "source": "A Paper", "stated_with": stated_with}]
        folder = write_run(tmp_path / name, matrix=falling(3), expect=expect)
        return tables.groups([load.read(folder)])

    (found,) = published.published(group("epochs", **{"method.lr": 0.01, "stream.increment": 10})[0])
    assert found.note == "method.lr was 0.01, now 0.001; stream.increment was 10, now 2"
    for name, was in (
        ("stream.data", [{"name": "cifar100"}]),
        ("stream.data.name", "imagenet_r"),
        ("models.vit.weights", "vit_base"),
        ("method.name", "l2p"),
    ):
        other = group(name, **{name: was, "method.lr": 0.01})
        assert published.published(other[0]) == []
        (said,) = [text for text in tables.warnings(other) if "published numbers are left out" in text]
        assert f"{name} was {tables.shown(was)}, now " in said and "method.lr" not in said
        assert "74.05" not in markdown.markdown(other) + terminal(other, width=80)
        assert "Published beside ours" not in html.html(other)
        table = wide.wide([run for one in other for run in one.runs])
        assert [line.source for line in table.lines] == [""] and said in table.remarks


def test_markdown_has_direction_interval_and_seeds(pages):
    lines = pages[1]["report.md"].read_text().splitlines()
    assert lines[0] == "|method|metric||mean||95 % CI|s|n|"
    assert re.fullmatch(
        r"\|keeps\|average incremental accuracy \(%\)\|↑\|\*\*\d+\.\d\d\*\*\|±\|\d+\.\d\d\|\d+\.\d\d\|3\|", lines[2]
    )
    assert all(line.count("|") == lines[0].count("|") for line in lines[:4])


def test_the_csv_holds_every_cell_and_the_json_every_number(pages):
    runs, paths = pages
    rows = list(csv.DictReader(io.StringIO(paths["scores.csv"].read_text())))
    assert len(rows) == 6 * (10 + 4)
    first = next(r for r in rows if r["run"] == "keeps-0" and r["after"] == "3" and r["asked"] == "0")
    assert float(first["value"]) == json.loads((runs[0] / "scores.json").read_text())["rows"][-4]["values"]["accuracy"]
    tree = json.loads(paths["report.json"].read_text())
    assert [g["label"] for g in tree["groups"]] == ["keeps", "loses"]
    assert tree["groups"][0]["numbers"][0]["n"] == 3 and tree["warnings"] == []


def test_gap_events_become_curves_before_and_after(pages):
    found = figures.gap_series(load.read(pages[0][0]))
    assert sorted(found) == ["negative, after", "negative, before", "positive, after", "positive, before"]
    assert found["positive, before"] == pytest.approx([24.0, 24.1, 24.2, 24.3])


def test_gap_events_may_name_the_moment_in_their_keys(tmp_path):
    run = write_run(tmp_path / "run", matrix=[[80.0]])
    with (run / "events.jsonl").open("a") as file:
        values = {"positive_before": 20.0, "negative_before": 15.0, "positive_after": 25.0, "negative_after": 14.0}
        file.write(json.dumps({"time": 1, "event": "gap", "task": 0, **values}) + "\n")
        file.write(
            json.dumps({"time": 2, "event": "epochs", "task": 0, "positive_before": 9, "negative_before": 9}) + "\n"
        )
    found = figures.gap_series(load.read(run))
    assert found["positive, after"] == [25.0] and found["negative, before"] == [15.0] and len(found) == 4


def test_a_page_that_grows_too_big_drops_drawings_and_keeps_their_tables(pages):
    groups = tables.groups([load.read(run) for run in pages[0]])
    full = len(html.html(groups).encode())
    small = html.html(groups, limit=full - 1)
    assert len(small.encode()) < full and "Not drawn, to keep this page below" in small
    assert len(Page(small).all("figure")) == 7 and len(Page(small).all("svg")) == 6


@pytest.mark.parametrize(
    ("matrix", "mean"),
    [([[80.0]], "80.00"), ([[80.0, None], [None, 60.0]], "70.00"), ([[None, None], [50.0, 60.0]], "55.00")],
)
def test_small_and_partial_runs_have_a_page(tmp_path, matrix, mean):
    run = write_run(tmp_path / "run", matrix=matrix, parts=("scores",))
    text = read(report([run], tmp_path / "out")).text
    assert "nan" not in text.lower() and mean in text


def test_the_headline_of_each_task_counts_where_tasks_are_scored_in_their_own_way(tmp_path):
    run = write_run(tmp_path / "run", matrix=[[80.0, None], [70.0, 60.0]])
    scores = json.loads((run / "scores.json").read_text())
    scores["rows"][-1]["values"] = {"cider": 60.0}
    (run / "scores.json").write_text(json.dumps(scores))
    found = {n.title: v for n, v in tables.run_numbers(load.read(run)).items()}
    assert found["final accuracy"] == 65


def test_runs_without_a_score_are_refused(tmp_path):
    run = write_run(tmp_path / "run", matrix=[[None]])
    with pytest.raises(DataError, match="no score yet"):
        report([run], tmp_path / "out")


def test_csv_cells_may_hold_commas():
    assert plain.csv_text(["a"], [["x, y"], [None]]) == 'a\n"x, y"\n""\n'


def axis_ends(figure, monkeypatch):
    """Limits of both axes of every panel that a figure draws."""
    seen = []
    made = drawing.canvas

    def watched(**more):
        canvas, axes = made(**more)
        seen.append(canvas)
        return canvas, axes

    monkeypatch.setattr(drawing, "canvas", watched)
    drawn = figure()
    return drawn, [(*axes.get_xlim(), *axes.get_ylim()) for axes in seen[-1].axes if axes.get_visible()]


def test_axes_and_intervals_of_percentages_end_at_0_and_100(tmp_path, monkeypatch):
    """Three seeds so far apart that Student's t goes far beyond, as 4.3 standard errors do."""
    wide = [[[99.0, None], [2.0, 99.0]], [[60.0, None], [50.0, 60.0]], [[98.0, None], [1.0, 98.0]]]
    runs = [write_run(tmp_path / f"r{s}", matrix=m, seed=s) for s, m in enumerate(wide)]
    groups = tables.groups([load.read(run) for run in runs])
    curve, ends = axis_ends(lambda: figures.accuracy_curve(groups), monkeypatch)
    assert all(low >= 0 and high <= 100 for *_, low, high in ends)
    assert all(0 <= low <= mean <= high <= 100 for *_, mean, low, high in curve.rows)
    assert curve.note == "Bands: 95 % interval of the mean over seeds (Student's t), cut at 0 and 100."
    tasks, ends = axis_ends(lambda: figures.curve_per_task(groups), monkeypatch)
    assert all(low >= 0 and high <= 100 for *_, low, high in ends) and tasks.note == curve.note
    lost, ends = axis_ends(lambda: figures.forgetting_per_task(groups), monkeypatch)
    assert all(low >= -100 and high <= 100 for low, high, *_ in ends)
    assert lost.note == "Bars: 95 % interval of the mean over seeds (Student's t), cut at 100."


def test_every_interval_says_what_it_is_and_none_is_named_where_there_is_one_seed(tmp_path):
    one = tables.groups([load.read(write_run(tmp_path / "one", matrix=falling(3), gap=True))])
    assert all("seeds" not in figure.note for figure in figures.all_figures(one))
    pair = [write_run(tmp_path / f"two-{s}", matrix=falling(3, seed=s), seed=s, gap=True) for s in range(2)]
    three = [write_run(tmp_path / f"m-{s}", matrix=falling(3, seed=s), method="b", seed=s, gap=True) for s in range(3)]
    both = tables.groups([load.read(run) for run in [*pair, *three]])
    for figure in figures.all_figures(both):
        expected = "Mean over" if figure.key.startswith("matrix") else "range over two seeds where there are no more"
        assert expected in figure.note, figure.key


def test_an_unfinished_run_has_a_page_of_what_is_there_says_so_and_wins_nothing(tmp_path):
    whole = [write_run(tmp_path / f"w{s}", matrix=falling(4, seed=s), seed=s, method="whole") for s in range(3)]
    part = [
        write_run(
            tmp_path / f"p{s}",
            matrix=[*falling(4, start=99.0, seed=s)[:2], [None] * 4, [None] * 4],
            seed=s,
            method="part",
            parts=("scores", "recipe", "events"),
            expect=[{"metric": "average", "value": 90.0}],
        )
        for s in range(3)
    ]
    paths = report([*whole, *part], tmp_path / "out")
    text = paths["report.md"].read_text()
    assert "unfinished, 2 of 4 tasks: the numbers are of these" in text and "card.json is missing" not in text
    (row,) = (
        line for line in text.splitlines() if line.startswith("|part (2 of 4 tasks)|average incremental accuracy")
    )
    by_hand = [(m[0][0] + (m[1][0] + m[1][1]) / 2) / 2 for m in (falling(4, start=99.0, seed=s) for s in range(3))]
    assert f"|{sum(by_hand) / 3:.2f}|" in row
    assert "**" not in text and "undecided: part (2 of 4 tasks) is unfinished" in text
    assert not any(p.ours for group in tables.groups([load.read(r) for r in part]) for p in published.published(group))


def test_settings_are_written_as_in_a_recipe_everywhere(tmp_path):
    """None, False and true of Python never reach a reader: not in Markdown, labels, HTML or on a terminal."""
    settings = [{"decay": None, "nesterov": False, "rate": 1.2345}, {"decay": 0.1, "nesterov": True, "rate": 1e-5}]
    runs = [write_run(tmp_path / str(i), matrix=falling(2), settings=s) for i, s in enumerate(settings)]
    paths = report(runs, tmp_path / "out")
    groups = tables.groups([load.read(run) for run in runs])
    for text in (
        paths["report.md"].read_text(),
        Page(paths["report.html"].read_text()).text,
        terminal(groups, width=80),
    ):
        assert not re.search(r"\b(None|False|True)\b", text)
        assert all(written in text for written in ("false", "true", "1.2345", "1e-05"))
    assert "nesterov=false" in groups[0].label


@pytest.mark.parametrize("width", [40, 60, 80])
def test_on_a_terminal_no_line_is_wider_than_it_and_every_number_is_there(pages, width):
    runs, _ = pages
    for chosen in (runs[:1], runs[:3], runs):
        groups = tables.groups([load.read(run) for run in chosen])
        text = terminal(groups, width=width)
        assert max(map(len, text.splitlines())) <= width
        for group in groups:
            assert all(f"{one.mean:.2f}" in text for one in group.summaries.values())
        assert ("±" in text) == (len(chosen) > 1), "a mark is explained only where it is used"
        assert ("*:" in text) == (len(groups) > 1)
        assert "|" not in re.sub(r"a \| b", "", text)


def test_the_terminals_table_by_hand(tmp_path):
    groups = tables.groups([load.read(write_run(tmp_path / "r", matrix=[[90.0, None], [80.0, 70.0]]))])
    lines = terminal(groups, width=36).splitlines()
    assert lines == [
        "made_up                         mean",
        "  average incremental          82.50",
        "    accuracy (%) ↑",
        "  final accuracy (%) ↑         75.00",
        "  accuracy when learned (%)    80.00",
        "    ↑",
        "  forgetting (%) ↓             10.00",
        "  backward transfer (%) ↑     -10.00",
    ]


def test_the_page_calls_data_sets_as_the_stream_does(tmp_path):
    folder = write_run(tmp_path / "r", matrix=falling(2))
    recipe = json.loads((folder / "recipe.yaml").read_text())
    recipe["stream"] |= {"name": "multi_domain", "data": [{"name": "microworld"}] * 2, "names": ["A", "B"]}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    assert "on A, B (multi_domain)" in Page(html.html(tables.groups([load.read(folder)]))).text


def test_the_page_names_data_and_stream(pages):
    assert "on made_up_digits (class_incremental), 4 tasks, 6 runs" in read(pages[1]).text
