"""[matrix]: read, crossed, printed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner
from support import run, session_of

from harness.board import parse_board
from harness.cli import cli
from harness.errors import UsageError
from harness.leaderboard import aggregate
from harness.manifest import Manifest, MatrixRow
from harness.render import markdown, matrix
from harness.session import Changes, locate, write_tables

BOARD = """
name = "m"
dataset = "blobs"
limit = 20
all_samples = true
models = [
    { use = "tiny", label = "T, plain" },
    { use = "tiny", shift = 0.6, label = "T shifted" },
    { use = "stepped", label = "S" },
]
core = ["from S"]
[matrix.sources]
S = { use = "pgd", steps = 3, gradient = "bpda" }
"T, plain" = ["fgsm", { use = "ascend", restarts = 2, label = "x2" }]
"T shifted" = "wander"
[[threat]]
norm = "Linf"
eps = [0.05, 0.1, "1/5"]
reference = 0.1
[[published]]
source = "P, table III"
norm = "Linf"
measure = "adversarial_accuracy"
eps = 0.1
[published.values."T shifted"]
"from S" = 0.123
[[published]]
source = "P, table III"
norm = "Linf"
measure = "clean_accuracy"
values = { S = 0.999 }
"""
ROWS = (
    MatrixRow("S", "pgd:steps=3,gradient=bpda", "from S"),
    MatrixRow("T, plain", "fgsm", "from T, plain (fgsm)"),
    MatrixRow("T, plain", "x2", "from T, plain (x2)"),
    MatrixRow("T shifted", "wander", "from T shifted"),
)


def read(text):
    return parse_board(text.encode(), "b.toml")


def test_each_source_is_an_attack_of_the_board():
    board = read(BOARD)
    assert board.matrix == ROWS
    assert [c.label for c in board.attacks] == [row.attack for row in ROWS]
    first, second, third, _ = (str(c.selection) for c in board.attacks)
    assert first == "transfer:source=stepped,attack=(pgd:steps=3,gradient=bpda)"
    assert (second, third) == (
        "transfer:source=tiny,attack=fgsm",
        "transfer:source=tiny,attack=(ascend:restarts=2)",
    )


def test_it_stands_beside_a_boards_other_attacks_and_in_a_built_in_board():
    text = BOARD.replace("core =", 'attacks = ["wander"]\ncore =')
    assert [c.label for c in read(text).attacks] == ["wander", *(row.attack for row in ROWS)]
    built_in = parse_board(BOARD.encode(), "b.toml", "home")
    assert str(built_in.attacks[1].selection) == ("home/transfer:source=home/tiny,attack=home/fgsm")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\nS = {", "\nR = {", "b.toml: matrix: sources: 'R' is not a model of the board"),
        ('"T, plain" = [', '"T plain" = [', "'T plain' is not a model of the board, did you mean"),
        ("[matrix.sources]", "[matrix]\n[matrix.source]", "matrix: sources: missing; expected a"),
        ("[matrix.sources]", "[matrix]\nrows = 3\n[matrix.sources]", "matrix: unknown key 'rows'"),
        (' = { use = "pgd", steps = 3, gradient = "bpda" }', " = 3", "sources: S: 3: expected"),
        ('["fgsm", {', '["pgd:=1", {', "matrix: sources: T, plain: 'pgd:=1'"),
        ('["fgsm", {', '["x2", {', "attacks: 'from T, plain (x2)' stands twice"),
    ],
)
def test_what_is_wrong_is_named(old, new, message):
    assert old in BOARD
    with pytest.raises(UsageError) as error:
        read(BOARD.replace(old, new))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_sources_and_no_matrix_that_is_a_table():
    head, _, tail = BOARD.partition("[matrix.sources]")
    rest = tail[tail.index("[[threat]]") :]
    with pytest.raises(UsageError, match=r"matrix: sources: expected a table .* got none"):
        read(f"{head}[matrix]\nsources = {{}}\n{rest}")
    with pytest.raises(UsageError, match="matrix: expected a table, got 3"):
        read(f"{head}matrix = 3\n{rest}")
    with pytest.raises(UsageError, match="matrix: sources: missing"):
        read(f"{head}[matrix]\n{rest}")
    with pytest.raises(UsageError, match="attacks: missing"):
        read(head + rest)


@pytest.fixture
def ran(tmp_path):
    return run(BOARD, tmp_path / "m")


def entries(ran, eps=None):
    ((title, grid),) = matrix.sections(ran.leaderboard, eps)
    return title, grid


def accuracy(ran, model, attack, column):
    record = ran.of(model, attack).arrays
    return f"{100 * (record['label'][:, column] == record['y']).mean():.1f}"


@pytest.mark.parametrize(("eps", "column"), [(None, 1), ("0.2", 2), ("1/20", 0)])
def test_an_entry_is_the_accuracy_of_the_images_of_the_row_on_the_model_of_the_column(
    ran, eps, column
):
    title, grid = entries(ran, eps)
    cells = [cell for row in ran.leaderboard.tables[0].rows for cell in row.cells]
    robust = [cell.robust[column].mean for cell in cells]
    assert robust != [cell.figures.accuracy[column] for cell in cells]  # not the same figures
    models = ["T, plain", "T shifted", "S"]  # as the board has them, not as they rank
    assert grid.header == ("Source", "Attack", *models)
    assert [row[:2] for row in grid.rows] == [
        ("clean", "–"),
        *((row.source, row.by) for row in ROWS),
    ]
    for row, shown in zip(ROWS, grid.rows[1:], strict=True):
        for model, entry in zip(models, shown[2:], strict=True):
            assert entry.partition(" ")[0] == accuracy(ran, model, row.attack, column)
    clean = [ran.of(m).facts["clean_accuracy"] for m in models]
    assert [c.partition(" ")[0] for c in grid.rows[0][2:]] == [f"{100 * c:.1f}" for c in clean]
    assert f"ε = {('0.05', '0.1', '1/5')[column]}: accuracy of the adversarial images" in title


def test_published_figures_stand_beside_their_entry_at_their_budget(ran):
    beside = {
        (i, j): cell.partition(" ")[2]
        for i, row in enumerate(entries(ran)[1].rows)
        for j, cell in enumerate(row[2:])
        if " " in cell
    }
    assert beside == {(0, 2): "(99.9)", (1, 1): "(12.3)"}
    other = [c for row in entries(ran, "0.2")[1].rows for c in row[2:] if " " in c]
    assert len(other) == 1
    assert other[0].endswith(" (99.9)")


def test_a_source_is_a_model_of_the_board_and_fitted_once(ran):
    fits = [c.label for c in ran.plan.cells.values() if c.kind == "fit"]
    assert sorted(fits) == ["S", "T shifted", "T, plain"]
    assert ran.of("S", "from S").facts["access"] == "bpda"
    assert ran.of("T shifted", "from S").facts["access"] == "transfer"


def test_a_narrowed_board_keeps_its_sources(tmp_path):
    plan = session_of(BOARD, tmp_path, Changes(models=("T shifted",), attacks=("from S",))).plan
    assert {c.label for c in plan.cells.values() if c.row} == {"T shifted"}
    assert len(plan.cells) == 3
    assert plan.manifest.matrix == ROWS[:1]


def test_what_has_no_result_says_so(ran):
    failed = ran.of("S", "from T, plain (x2)").key
    records = {k: r for k, r in ran.records.items() if k != failed}
    ((_, grid),) = matrix.sections(aggregate(ran.plan.manifest, records))
    assert grid.rows[3][4] == "not run"


def test_the_manifest_keeps_it_and_is_as_before_without_one(ran):
    manifest = ran.plan.manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    plain = Manifest(**{**vars(manifest), "matrix": ()})
    assert '"matrix"' not in plain.to_json()
    assert Manifest.from_json(plain.to_json()) == plain


def test_the_boards_page_has_it(ran):
    page = markdown.render(ran.leaderboard)
    assert "### Linf: from model to model, ε = 0.1" in page
    assert "| clean | – | " in page
    plain = Manifest(**{**vars(ran.plan.manifest), "matrix": ()})
    assert "from model to model" not in markdown.render(aggregate(plain, ran.records))


def test_report_prints_it_from_the_records_alone(ran, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tables(locate("m", None), ran.plan.manifest, ran.records)

    def report(*arguments):
        return CliRunner().invoke(cli, ["report", "m", *arguments])

    printed = report("--matrix").stdout
    assert printed == report("--matrix", "--eps", "0.1").stdout
    assert "m: Linf, ε = 0.1: accuracy of the adversarial images, % of all 20" in printed
    assert [line.split("  ")[0] for line in printed.splitlines()[4:8]] == [
        "clean", "S", "T, plain", "T, plain",
    ]  # fmt: skip
    page = report("--matrix", "--eps", "1/5", "--format", "markdown").stdout
    assert page.startswith("## m: Linf, ε = 1/5: accuracy")
    for wrong, said in [
        (["--matrix", "--eps", "0.3"], r"--eps 0\.3: in no grid of the board \(Linf: 0\.05, 0"),
        (["--eps", "0.1"], "--eps needs --matrix"),
        (["--matrix", "--cost"], "--matrix: not with --cost"),
        (["--matrix", "--format", "csv"], "--matrix: not with --format csv"),
    ]:
        with pytest.raises(UsageError, match=said):
            raise report(*wrong).exception
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['harness', 'report', 'm', '--matrix']"
        "\nfrom harness.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, printed)


def test_a_board_without_one_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head, _, tail = BOARD.partition("[matrix.sources]")
    threats = tail[tail.index("[[threat]]") : tail.index("[[published]]")]
    text = head.replace('core = ["from S"]', 'attacks = ["ascend"]') + threats
    run(text, tmp_path / "m")
    result = CliRunner().invoke(cli, ["report", "m", "--matrix"])
    assert "the board 'm' has no [matrix]" in str(result.exception)
