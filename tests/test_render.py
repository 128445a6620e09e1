"""Pages made of a small leaderboard: what they say, and that strangers' words stay words."""

from __future__ import annotations

import csv as stdlib_csv
import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from handmade import LETTERS, Handmade, threat
from rich.console import Console

from harness.leaderboard import aggregate
from harness.records import Problem
from harness.render import cost, csv, frame, markdown, terminal
from harness.render.text import LONGEST, count, interval, number, percent, plain

EVIL = "a|b <script>x</script>\n[t](http://e) ![i](u) `c` *b* \x1b[31m\u202e"


def small(**more) -> Handmade:
    """Three samples, all correct: pgd breaks one of A at 0.2, none of B; square timed out on B."""
    board = Handmade([0, 0, 0], (threat(eps=("0.1", "0.2"), core=("pgd", "square")),), **more)
    clean = [0, 0, 0]
    for model in board.models:
        for seed in board.seeds:
            board.fit(model, clean, seed)
            broken = "rrA" if model == board.models[0] and seed == 0 else "rrr"
            label = [[0, 0, int(broken[-1] == "A")]] * 2
            board.attack(
                model, "pgd", clean, ["rrr", broken], label, [[0.1] * 3, [0.2] * 3], seed=seed
            )
            if model == board.models[0]:
                board.attack(
                    model, "square", clean, ["rrr"] * 2, [clean] * 2, [[0] * 3] * 2, seed=seed
                )
            else:
                board.add(model, seed, "square", "Linf", status="timeout", reason="after 5 s")
    return board


def leaderboard(board: Handmade, *problems: Problem):
    return aggregate(board.manifest(), board.records, problems)


def page(board: Handmade, *problems: Problem) -> str:
    return markdown.render(leaderboard(board, *problems))


def test_the_ranking_of_a_page():
    lines = page(small()).splitlines()
    head = lines.index("## Linf, ranked at ε = 0.2") + 4
    assert lines[head : head + 4] == [
        "| Rank | Model | Clean | Robust (core) | Robust (all) | 8-bit (core) "
        "| pgd\\* | square\\* | Reached by | Notes |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
        "| 1 | A | 100.0 \\[43.9, 100.0\\] | 66.7 \\[20.8, 93.9\\] | 66.7 | – | 66.7 | 100.0 "
        "| gradient |  |",
        "| – | B | 100.0 \\[43.9, 100.0\\] | 100.0 \\[43.9, 100.0\\] | 100.0 | – "
        "| 100.0 | timeout | gradient | unranked: lacks square: timeout |",
    ]


def test_a_page_says_what_was_evaluated_and_what_was_not():
    text = page(small(title="Quick board"), Problem("torn.json", "no JSON"))
    assert text.startswith("# Quick board\n")
    assert "**all 3 evaluated samples**" in text
    assert "harness run leaderboards/board\nharness report leaderboards/board\n" in text
    assert "| A | core | 100.0 | 100.0 | 66.7 |" in text
    assert "| A | pgd | gradients | 100.0 / 66.7 | 66.7 / 66.7 |" in text
    assert "| B | square | Linf | 0 | timeout | after 5 s |" in text
    assert "| torn.json | no JSON |" in text
    assert "## Flags" not in text


def test_budgets_are_shown_as_they_were_written():
    board = small()
    grid = [
        replace(e, text=t) for e, t in zip(board.threats[0].eps, ("8/255", "0.20"), strict=True)
    ]
    board.threats = (replace(board.threats[0], eps=tuple(grid), reference=grid[0]),)
    text = page(board)
    assert "## Linf, ranked at ε = 8/255\n" in text
    assert "ε in 8/255, 0.20." in text


def test_several_seeds_show_their_spread():
    """A is broken on one sample of three with seed 0 alone: 0.667 and 1."""
    text = page(small(seeds=(0, 1)))
    assert "| A | 100.0 ± 0.0 | 83.3 ± 23.6 | 83.3 |" in text
    assert "`±` is the standard deviation over the seeds" in text
    assert "| B | square | Linf | 0, 1 | timeout |" in text


def test_only_flags_in_use_are_explained():
    board = small()
    board.fit(
        "A", [0, 0, 0], facts={"flags": ["labels of 1 of 3 images changed between two calls"]}
    )
    text = page(board)
    assert text.count("changed between two calls") == 2
    assert "weaker than black-box" not in text


def test_strangers_words_stay_words():
    """Labels, flags and reasons with markup and control characters: no column, link or tag."""
    board = small(models=(EVIL, "B"), title=EVIL)
    board.add("B", 0, "square", "Linf", status="failed", reason=EVIL)
    text = page(board, Problem(EVIL, EVIL))
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert not re.search(r"(?<!\\)\[t", text)
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in _ranking(text)}
    assert columns == {11}


def _ranking(text: str) -> list[str]:
    after = text.split("it alone.\n\n")[1]
    return after.split("\n\n")[0].splitlines()


def test_a_csv_is_one_value_a_line():
    rows = list(stdlib_csv.DictReader(io.StringIO(csv.render(leaderboard(small())))))
    found = {(r["model"], r["attack"], r["eps"], r["measure"]): r for r in rows}
    assert len(found) == len(rows)
    core = found["A", "(core)", "0.2", "robust_accuracy"]
    assert (core["value"], core["low"], core["rank"]) == ("0.666667", "0.20766", "1")
    assert found["A", "pgd", "0.1", "adversarial_accuracy"]["value"] == "0.666667"
    assert found["A", "", "", "clean_accuracy"]["value"] == "1"
    lost = found["B", "square", "0.2", "robust_accuracy"]
    assert (lost["value"], lost["status"], lost["rank"]) == ("", "timeout", "")
    assert (
        found["B", "(core)", "0.2", "robust_accuracy"]["status"]
        == "unranked: lacks square: timeout"
    )


def test_a_csv_holds_no_formula_and_no_control_character():
    text = csv.render(leaderboard(small(models=("=1+1", EVIL))))
    assert ",'=1+1," in text
    assert "\x1b" not in text
    assert len(text.splitlines()) == len(list(stdlib_csv.reader(io.StringIO(text))))


def test_a_frame_holds_the_same_values():
    board = leaderboard(small())
    table = frame.render(board)
    lines = list(stdlib_csv.DictReader(io.StringIO(csv.render(board))))
    assert list(table.columns) == list(lines[0])
    assert table["measure"].tolist() == [line["measure"] for line in lines]
    shown = [float(line["value"] or "nan") for line in lines]
    np.testing.assert_allclose(table["value"], shown, rtol=1e-5)


def printed(board, **options) -> str:
    out = io.StringIO()
    terminal.render(board, Console(file=out, **options))
    return out.getvalue()


def test_without_a_terminal_columns_are_plain_and_never_cut():
    long = "m" * 200
    text = printed(
        leaderboard(small(models=("A", long)), Problem("torn.json", "no JSON")), width=40
    )
    line = next(line for line in text.splitlines() if long in line)
    assert line.endswith("unranked: lacks square: timeout")
    assert "\x1b" not in text
    assert "torn.json" in text
    assert "% of all 3 evaluated samples" in text


def test_on_a_terminal_markup_is_not_obeyed():
    board = leaderboard(small(models=("A", "[red]x[/red] \x1b[31m")))
    text = printed(board, force_terminal=True, width=200)
    assert "[red]x[/red]" in text
    assert "━" in text
    assert "\x1b[31m" not in text


def test_the_terminal_is_standard_output_unless_told(capsys):
    terminal.render(leaderboard(small()))
    assert "Robust (core)" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("terminal_too", [False, True])
def test_letters_that_a_stream_cannot_hold_are_replaced(encoding, terminal_too):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    board = leaderboard(small(models=("A", "Bé–"), title="Ωmega"))
    terminal.render(board, Console(file=stream, force_terminal=terminal_too, width=200))
    stream.flush()
    text = raw.getvalue().decode(encoding)
    assert "?mega: Linf, ? = 0.2" in text
    assert ("B??" if encoding == "ascii" else "Bé?") in text
    assert "unranked: lacks square: timeout" in text


def test_invalid_images_are_noted_everywhere_and_explained():
    board = small()
    outcome = next(r for r in board.records.values() if r.kind == "attack").arrays["outcome"]
    outcome[0, 1] = LETTERS["x"]
    flag = "pgd: 1 of 3 images invalid at the reference"
    reason = "unranked: invalid images of samples left robust: pgd 1"
    text = page(board)
    assert f"| {reason}; {flag} |" in text
    assert "* *images invalid at the reference*: of the attack's images" in text
    assert f"{reason}; {flag}" in printed(leaderboard(board))
    assert reason.split(": ", 1)[1] in csv.render(leaderboard(board))


def costly(seconds: float):
    board = small()
    spent = {"wall_seconds": seconds, "cpu_seconds": seconds / 2, "forward": 12, "backward": 3}
    for record in list(board.records.values()):
        board.records[record.key] = replace(record, cost=spent)
    return leaderboard(board)


def test_times_are_in_the_cost_report_alone():
    assert markdown.render(costly(1.0)) == markdown.render(costly(2.0))
    assert csv.render(costly(1.0)) == csv.render(costly(2.0))
    assert printed(costly(1.0)) == printed(costly(2.0))
    lines = cost.render(costly(2.0)).splitlines()
    assert lines[3].split() == ["B", "(fit)", "–", "ok", "2.0", "1.0", "12", "3"]
    assert lines[-1].split() == ["(sum)", "12.0", "6.0", "72", "18"]


def test_corruptions_have_a_table():
    board = small(attacks=("pgd", "square", "fog"))
    board.threats += (threat("corruption", eps=("0.1", "0.5"), draws=2),)
    right = np.array([[[1, 1], [0, 0]], [[1, 0], [0, 0]], [[1, 1], [1, 0]]], np.uint8)
    arrays = {"ids": np.arange(3), "y": np.zeros(3, int), "draw_correct": right}
    board.add("A", 0, "fog", "corruption", arrays=arrays)
    text = page(board)
    assert "| Model | Corruption | Clean | 0.1 | 0.5 |" in text
    assert "| A | fog | 100.0 | 83.3 | 16.7 |" in text
    assert "| B | fog | 100.0 | not run | not run |" in text
    rows = stdlib_csv.DictReader(io.StringIO(csv.render(leaderboard(board))))
    assert [r["value"] for r in rows if r["measure"] == "accuracy"] == [
        "0.833333",
        "0.166667",
        "",
        "",
    ]


def test_a_board_of_which_nothing_ran_has_a_page():
    board = Handmade([0, 0], (threat(core=("pgd",)),))
    text = page(board)
    assert (
        "| – | A | – | – | – | – | not fitted | not fitted | – "
        "| unranked: not fitted: not run |" in text
    )
    assert "| A | (fit) | – | 0 | not run | no record of it yet |" in text
    assert "attack by attack" not in text
    assert csv.render(leaderboard(board)).count("\n") > 1


def test_a_heading_speaks_of_ranks_only_where_there_are_any():
    board = small()
    board.threats = (replace(board.threats[0], core=()),)
    text = page(board)
    assert "## Linf, at ε = 0.2\n" in text
    assert "ranked at" not in text


def test_targeted_boards_say_so():
    board = small()
    board.threats = (replace(board.threats[0], target="least"),)
    assert "## Linf, targeted (least), at ε = 0.2" in page(board)
    assert "Linf targeted (least)" in printed(leaderboard(board))


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.4525), "45.2"),
        (percent(None), "–"),
        (percent(math.nan), "–"),
        (interval(None), "–"),
        (number(0.031372549), "0.03137"),
        (number(12.3456), "12.35"),
        (number(math.nan), "–"),
        (count(40.0), "40"),
        (count(12.25), "12.2"),
        (count(math.nan), "–"),
        (plain(" a\tb\r\nc\x00 \u200bd "), "a b c d"),
        (plain("x" * 1000), "x" * (LONGEST - 1) + "…"),
    ],
)
def test_how_values_are_written(shown, expected):
    assert shown == expected
