"""Papers' figures beside a board's own: read, checked, looked up, printed."""

from __future__ import annotations

import json

import pytest
from handmade import Handmade, threat

from harness.board import parse_board
from harness.errors import UsageError
from harness.leaderboard import aggregate
from harness.manifest import Manifest, Published
from harness.published import MEASURES
from harness.render import grids, markdown, tidy

BOARD = """
name = "b"
dataset = "digits"
models = ["linear", { use = "mlp", label = "MLP" }]
attacks = ["pgd", "bim"]
[[threat]]
norm = "Linf"
eps = [0.1, "8/255"]
[[published]]
source = "A 2020, table 1"
norm = "Linf"
measure = "mean_distance"
note = "fewer images"
[published.values.MLP]
pgd = 0.25
bim = 1
[[published]]
source = "A 2020, table 2"
norm = "Linf"
measure = "robust_accuracy"
eps = "8/255"
[published.values.linear]
pgd = 0.5
[[published]]
source = "A 2020, table 2"
norm = "Linf"
measure = "clean_accuracy"
[published.values]
linear = 0.9
""".replace("[0.1, ", "[0.01, ")


def read(text):
    return parse_board(text.encode(), "b.toml").published


def test_figures_are_read_block_by_block():
    first = Published(
        "A 2020, table 1", "Linf", "MLP", "pgd", "mean_distance", "", 0.25, "fewer images"
    )
    found = read(BOARD)
    assert found[0] == first
    assert [(p.model, p.attack, p.measure, p.eps, p.value) for p in found[1:]] == [
        ("MLP", "bim", "mean_distance", "", 1.0),
        ("linear", "pgd", "robust_accuracy", "8/255", 0.5),
        ("linear", "", "clean_accuracy", "", 0.9),
    ]


def test_of_several_budgets_there_is_a_figure_for_each():
    several = BOARD.replace('eps = "8/255"\n', 'eps = ["8/255", 0.01]\n').replace(
        "0.5", "[0.5, 0.75]"
    )
    assert [(p.eps, p.value) for p in read(several) if p.source == "A 2020, table 2" and p.eps] == [
        ("8/255", 0.5),
        ("0.01", 0.75),
    ]
    with pytest.raises(UsageError, match=r"expected 2 numbers, one for each eps, got \[0.5\]"):
        read(several.replace("[0.5, 0.75]", "[0.5]"))
    with pytest.raises(UsageError, match=r"expected a number, got '0.75'"):
        read(several.replace("0.75", '"0.75"'))
    with pytest.raises(UsageError, match=r"eps: '0.02' is not on the board"):
        read(several.replace("0.01]", "0.02]"))
    with pytest.raises(UsageError, match=r"expected a budget of the grid, or several, each once"):
        read(several.replace("0.01]", '"8/255"]'))
    with pytest.raises(UsageError, match=r"several, each once, got \[\]"):
        read(several.replace('["8/255", 0.01]', "[]"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "values.MLP",
            "values.MPL",
            "published[0]: values: 'MPL' is not on the board, did",
        ),
        ("bim = 1", "bmi = 1", "published[0]: values.MLP: 'bmi' is not on the board, did you mean"),
        ("bim = 1", 'bim = "1"', "published[0]: values.MLP: expected a number, got '1'"),
        ("bim = 1", "bim = true", "values.MLP: expected a number, got True"),
        ('"mean_distance"', '"mean"', "published[0]: measure: expected one of clean_accuracy"),
        (
            '"8/255"\n[published',
            '"0.3"\n[published',
            "[1]: eps: '0.3' is not on the board",
        ),
        ('eps = "8/255"\n', "", "published[1]: eps: missing; expected a budget"),
        ('"Linf"\nmeasure', '"L2"\nmeasure', "published[0]: norm: 'L2' is not on the board"),
        ("linear = 0.9", "linear = [0.9]", "values.linear: expected a number, got [0.9]"),
        ("[published.values]\nlinear", "[published.vals]\nlinear", "values: missing"),
    ],
)
def test_what_is_wrong_is_named(old, new, message):
    assert old in BOARD
    with pytest.raises(UsageError) as error:
        read(BOARD.replace(old, new))
    assert message in str(error.value)
    assert str(error.value).startswith("b.toml: published[")


def by_hand(*published):
    """One model, one sample of four misclassified; the attack breaks two at 0.1 and 0.3."""
    board = Handmade([0] * 4, (threat(eps=("0.1", "0.4")),), ("A",), ("pgd",), published=published)
    board.fit("A", [1, 0, 0, 0])
    label, outcome = [[1, 1, 0, 1]] * 2, ["-Arr", "-ArA"]
    board.attack("A", "pgd", [1, 0, 0, 0], outcome, label, [[0, 0.1, 0.2, 0.3]] * 2)
    return aggregate(board.manifest(), board.records)


def test_the_boards_own_figure_stands_beside_the_papers():
    board = by_hand(
        Published("P", "Linf", "A", "pgd", "mean_distance", "", 0.4),
        Published("P", "Linf", "A", "pgd", "robust_accuracy", "0.4", 0.5, "because"),
        Published("P", "Linf", "A", "", "clean_accuracy", "", 0.0),
    )
    grid = grids.published(board, board.tables[0])
    assert [row[:7] for row in grid.rows] == [
        ("A", "pgd", "mean_distance", "–", "0.4", "0.2", "0.5"),
        ("A", "pgd", "robust_accuracy", "0.4", "0.5", "0.25", "0.5"),
        ("A", "–", "clean_accuracy", "–", "0", "0.75", "–"),
    ]
    page = markdown.render(board)
    assert "### Linf: beside published figures" in page
    assert "* *P*: because" in page


def test_a_figure_without_a_result_is_shown_without_one():
    board = Handmade([0], (threat(),), ("A",), ("pgd",))
    board.published = (Published("P", "Linf", "A", "pgd", "rho", "", 0.4),)
    found = aggregate(board.manifest(), {})
    assert grids.published(found, found.tables[0]).rows[0][4:7] == ("0.4", "–", "–")


def test_every_measure_is_one_that_a_leaderboard_has():
    assert set(MEASURES) <= {value.measure for value in tidy.rows(by_hand())}


def test_rho_over_all_counts_misclassified_samples_as_zero():
    """L2 is twice Linf here and ‖x‖₂ is 4: 0.05 and 0.15, and one misclassified sample."""
    figures = by_hand().tables[0].rows[0].cells[0].figures
    assert figures.rho == pytest.approx((0.2 / 4 + 0.6 / 4) / 2)
    assert figures.rho_all == pytest.approx((0.2 / 4 + 0.6 / 4) / 3)


def test_the_manifest_keeps_them_and_reads_older_ones_without():
    manifest = by_hand(Published("P", "Linf", "A", "pgd", "rho", "", 0.4, "why")).board
    assert Manifest.from_json(manifest.to_json()) == manifest
    raw = json.loads(manifest.to_json())
    del raw["published"]
    assert Manifest.from_json(json.dumps(raw)).published == ()
