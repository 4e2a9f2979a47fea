"""The pure parts of bench/: figures, tables, plots; and that docs/benchmarks.md is what the committed figures say."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import draw, svg, tables
from bench.peers.roster import PEERS
from bench.results import Comparison, Point, Scale, Series, System, figure, load, middle, percentile, ratios, save

MEASURES = {"noop", "true", "map", "latency", "queue"}


def system(name: str, *, missing: str = "", **figures: list[float]) -> System:
    series = {figure_name: Series(1000, values) for figure_name, values in figures.items()}
    return System(name, name.title(), "1.2", "no", f"a note on {name}" if name == "slow" else "", missing, series)


def comparison() -> Comparison:
    ours = system("districomp", noop=[1000.0, 4000.0, 3000.0], true=[10.0, 20.0, 30.0], latency_median=[1.0, 1.0, 2.0])
    slow = system("slow", noop=[10.0, 20.0, 10.0], latency_median=[20.0, 10.0, 30.0])
    absent = system("absent", missing="not installed")
    broken = system("broken", missing="the client ended", noop=[500.0])
    return Comparison("a machine", 3, [ours, slow, absent, broken])


def curves() -> Scale:
    workers = [Point(1, {"noop": [100.0, 110.0], "rss_mb": [40.0, 41.0]}), Point(1000, {"noop": [90.0, 95.0]})]
    return Scale("a machine", 2, workers, [Point(1000, {"submit_ms": [0.01]}), Point(10**7, {"submit_ms": [0.1]})])


# ---- figures ----


@pytest.mark.parametrize(
    ("value", "text"), [(123456.7, "123,457"), (100.0, "100"), (99.94, "99.9"), (10.0, "10.0"), (0.456, "0.46")]
)
def test_a_figure_has_as_many_digits_as_mean_something(value: float, text: str) -> None:
    assert figure(value) == text


def test_the_middle_is_the_median_with_its_range() -> None:
    assert middle([300.0, 100.0, 200.0]) == "200 [100 - 300]"
    assert middle([2.5]) == "2.50"
    assert middle([]) == "-"


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert percentile(values, 0.99) == 100.0
    assert percentile(values, 0.5) == 51.0
    assert percentile([7.0], 0.99) == 7.0


def test_ratios_are_of_the_same_round_and_end_with_the_shorter_series() -> None:
    assert ratios(Series(1, [10.0, 20.0, 30.0]), Series(1, [5.0, 4.0])) == [2.0, 5.0]
    assert ratios(Series(1, [10.0]), Series(1, [0.0])) == []


def test_samples_keep_their_rounds_and_four_digits() -> None:
    made = system("x")
    made.add("noop", 10, 123456.0)
    made.add("noop", 10, 1.23456)
    assert made.figures["noop"] == Series(10, [123500.0, 1.235])


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    save(comparison(), tmp_path)
    save(curves(), tmp_path)
    assert load(Comparison, tmp_path) == comparison()
    assert load(Scale, tmp_path) == curves()


# ---- tables ----


def test_a_table_escapes_what_would_part_its_cells() -> None:
    assert tables.table(["a", "b"], [["1|2", "3"]]) == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |"


def test_the_comparison_has_each_system_each_pair_and_why_one_is_missing() -> None:
    text = tables.comparison(comparison())
    assert (
        "| **Districomp 1.2** | 3,000 [1,000 - 4,000] | 20.0 [10.0 - 30.0] | 1.00 [1.00 - 2.00] | - | - | no |" in text
    )
    assert "| Slow | 200 [100 - 300] | - | - |" in text, "the ratio of each pair, not of the medians"
    assert "- Slow: a note on slow." in text
    assert "- Absent: not measured: not installed." in text
    assert "- Broken: stopped: the client ended." in text
    assert "3 rounds" in text


def test_the_scale_has_a_row_for_each_place_and_no_empty_column() -> None:
    text = tables.scale(curves())
    assert "| connected workers | no-op tasks/s | coordinator, MB |" in text
    assert "| 1,000 | 92.5 [90.0 - 95.0] | - |" in text
    assert "| 10,000,000 | 0.10 |" in text


# ---- plots ----


@pytest.mark.parametrize(
    ("value", "text"), [(1500.0, "1.5k"), (2e6, "2M"), (999.9, "1k"), (0.25, "0.25"), (12.0, "12"), (3e9, "3G")]
)
def test_a_number_on_an_axis_is_short(value: float, text: str) -> None:
    assert svg.short(value) == text


@pytest.mark.parametrize("values", [[3.0], [0.5, 7.0], [1.0, 1.0], [9.99, 1234.0], [0.0], [1e-3, 1e7]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_an_axis_has_room_for_all_values_and_a_few_marks(values: list[float], logarithmic: bool) -> None:
    axis = svg.scale(values, 100.0, 500.0, logarithmic=logarithmic)
    assert all(100.0 <= axis.at(value) <= 500.0 for value in values)
    marks = axis.marks()
    assert 2 <= len(marks) <= 11
    assert [axis.at(mark) for mark in marks] == sorted({axis.at(mark) for mark in marks})


def test_bars_say_their_figures_and_stay_on_the_page() -> None:
    rows = [svg.Bar("a & <b>", 1.0, 2.0, 3.0, "ours"), svg.Bar("c", 1e6, 1e6, 1e6)]
    root = ET.fromstring(svg.bars("title & more", rows, logarithmic=True))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & <b>", "c", "2", "1M", "title & more"} <= set(texts)
    for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(rect.get("x", "0")) + float(rect.get("width", "0")) <= svg.WIDTH


def test_panels_have_a_point_for_each_value() -> None:
    points = [(1.0, 1.0, 2.0, 3.0), (1000.0, 2.0, 3.0, 4.0)]
    root = ET.fromstring(svg.panels("t", [svg.Panel("one", points), svg.Panel("two", points[:1], logarithmic=True)]))
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 3


def test_a_plot_of_each_figure_that_two_systems_have() -> None:
    plots = draw.peer_plots(comparison())
    assert set(plots) == {"peers-noop.svg", "peers-latency.svg"}
    assert plots["peers-latency.svg"].index("Districomp") < plots["peers-latency.svg"].index("Slow"), "best first"
    assert set(draw.scale_plots(curves())) == {"scale-workers.svg", "scale-tasks.svg"}


# ---- the document, and the systems ----


def test_the_document_and_its_plots_are_what_the_results_say() -> None:
    for path, text in draw.drawn().items():
        assert path.read_text(encoding="utf-8") == text, "run `make docs`"
    assert set(draw.PLOTS.glob("*.svg")) == set(draw.drawn()) - {draw.DOCUMENT}


def test_a_drawn_part_is_replaced_and_nothing_else() -> None:
    text = "a\n<!-- drawn: x -->\nold\n<!-- end -->\nb\n<!-- drawn: y -->\nkeep\n<!-- end -->\n"
    assert draw.replace_part(text, "x", "new") == text.replace("old", "new")
    with pytest.raises(ValueError, match="no part `z`"):
        draw.replace_part(text, "z", "new")


def test_without_results_the_document_says_how_to_get_them(tmp_path: Path) -> None:
    text, plots = draw.peers_part(tmp_path)
    assert "python -m bench peers" in text
    assert not plots


def test_each_system_has_a_name_of_its_own_and_known_measures() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS) == 12
    for peer in PEERS:
        assert type(peer).__module__ == f"bench.peers.{peer.name}"
        assert peer.tasks.keys() <= MEASURES
