"""board.toml: what is wrong is named by file, key, expected and got."""

import pytest

from harness.board import parse_board
from harness.errors import UsageError
from harness.session import Changes, changed

GOOD = """
name = "b"
dataset = "digits:classes=0-1"
models = ["linear", { use = "mlp", epochs = 2, label = "MLP" }]
attacks = ["pgd:steps=4", "wander"]
core = ["wander"]
[[threat]]
norm = "linf"
eps = ["8/255", 0.1]
[[threat]]
norm = "corruption"
eps = [0.1, 0.2]
reference = 0.1
"""


def read(text):
    return parse_board(text.encode(), "b.toml")


def test_a_board_is_read_with_its_defaults():
    board = read(GOOD)
    assert [c.label for c in board.models] == ["linear", "MLP"]
    assert str(board.models[1].selection) == "mlp:epochs=2"
    linf, corruption = board.threats
    assert (linf.norm, linf.eps[0].text, linf.eps[0].value) == ("Linf", "8/255", 8 / 255)
    assert (linf.reference.value, linf.draws) == (0.1, 1)
    assert (corruption.reference.value, corruption.draws) == (0.1, 10)
    assert (board.seeds, board.limit, board.samples) == ((0,), None, "stratified")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "b"', "name = 3", "b.toml: name: expected a text, got 3"),
        ('name = "b"', "", "b.toml: name: missing"),
        ('name = "b"', 'nmae = "b"\nname = "b"', "unknown key 'nmae', did you mean 'name'"),
        ('name = "b"', 'name = "b"\nlimit = 0', "limit: expected an integer from 1, got 0"),
        ('name = "b"', 'name = "b"\nseeds = ["x"]', "seeds: expected a list of integers, got"),
        ('name = "b"', 'name = "b"\nall_samples = 1', "all_samples: expected true or false, got 1"),
        ('name = "b"', 'name = "b"\nsamples = "last"', "samples: expected one of"),
        ("[[threat]]", "[[threat]", "b.toml: not TOML"),
        ('norm = "linf"', 'norm = "L3"', "L3"),
        ('["8/255", 0.1]', '["8/255", "x"]', "threat[0]: eps"),
        ('["8/255", 0.1]', "[0.1, 0.05]", "threat[0]: eps: expected an increasing grid"),
        ('["8/255", 0.1]', "[]", "threat[0]: eps: is empty; expected a list of budgets such as"),
        ("reference = 0.1", "reference = 0.3", "threat[1]: reference: 0.3 is not in the grid"),
        (
            'core = ["wander"]',
            'core = ["wandr"]',
            "core: 'wandr' is not an attack of the board, did",
        ),
        ('"wander"]\ncore', '"pgd:steps=4"]\ncore', "attacks: 'pgd:steps=4' stands twice"),
        ('norm = "corruption"', 'norm = "Linf"', "a norm stands twice"),
        ('models = ["linear", ', "models = [3, ", "models[0]"),
        ('eps = ["8/255", 0.1]', "eps = [0.1]\ndraws = 3", "threat[0]: draws: "),
        ('label = "MLP"', "label = 3", "models[1]: label: expected a text, got 3"),
    ],
)
def test_what_is_wrong_is_named(old, new, message):
    with pytest.raises(UsageError) as error:
        read(GOOD.replace(old, new, 1))
    assert message in str(error.value)
    assert "\n" not in str(error.value).replace("[[threat", "")


def test_a_data_sets_limit_is_the_boards(tmp_path):
    board = read(GOOD.replace("digits:classes=0-1", "digits:classes=0-1,limit=50"))
    assert (str(board.dataset), board.limit) == ("digits:classes=0-1", 50)
    assert changed(board, Changes(dataset="digits:limit=7")).limit == 7
    with pytest.raises(UsageError, match="dataset: limit: expected an integer from 1, got '0'"):
        read(GOOD.replace("digits:classes=0-1", "digits:limit=0"))


def test_decimal_that_is_nearly_a_fraction_is_hinted_at():
    assert "8/255" in read(GOOD.replace('"8/255"', "0.031")).hints[0]
    assert read(GOOD).hints == ()


def test_flags_replace_lists_and_labels_stand_for_the_boards_own():
    board = read(GOOD)
    new = changed(
        board, Changes(models=("MLP", "tiny"), attacks=("pgd:steps=4",), eps=("0.3", "1/10"))
    )
    assert new.models[0] is board.models[1]
    assert new.models[1].label == "tiny"
    assert new.attacks == board.attacks[:1]
    assert new.core == ("wander",)
    assert [e.text for e in new.threats[0].eps] == ["1/10", "0.3"]
    assert new.threats[0].reference.text == "1/10"
    assert new.threats[1] == board.threats[1]
    assert changed(board, Changes()) is board


def test_a_norm_without_a_grid_is_refused():
    with pytest.raises(UsageError, match="--norm L1: the board has no grid for it"):
        changed(read(GOOD), Changes(norms=("l1",)))
    got = changed(read(GOOD), Changes(norms=("l1",), eps=("4", "2")))
    assert [(t.norm, [e.value for e in t.eps]) for t in got.threats] == [("L1", [2.0, 4.0])]


def test_a_threat_that_is_no_table_is_named_with_its_file():
    text = GOOD.partition("[[threat]]")[0].replace('name = "b"', 'name = "b"\nthreat = [1]')
    with pytest.raises(UsageError, match=r"^b\.toml: threat\[0\]: expected a table, got 1"):
        read(text)


def test_a_choice_knows_where_it_stands():
    board = read(GOOD)
    assert [c.where for c in board.models] == ["b.toml: models[0]", "b.toml: models[1]"]
    assert board.attacks[1].where == "b.toml: attacks[1]"
    new = changed(board, Changes(models=("MLP", "tiny"), attacks=("fgsm",)))
    assert [c.where for c in new.models] == ["b.toml: models[1]", "--model"]
    assert new.attacks[0].where == "--attack"
    assert changed(board, Changes(models=("linear", "mlp:epochs=2"))) == board


def test_corruptions_by_flags_are_drawn_and_have_the_grid_that_is_asked_for():
    plain = read(GOOD.rpartition("[[threat]]")[0])
    got = changed(plain, Changes(norms=("corruption",), eps=("0.5",)))
    assert [(t.norm, t.draws, t.reference.text) for t in got.threats] == [("corruption", 10, "0.5")]
    got = changed(read(GOOD), Changes(norms=("corruption",), eps=("0.5",)))
    assert [e.text for e in got.threats[0].eps] == ["0.5"]
    assert got.threats[0].draws == 10


def test_names_of_a_built_in_board_are_its_own_distributions():
    board = parse_board(GOOD.encode(), "built-in b", home="us")
    assert [c.selection.name for c in board.models] == ["us/linear", "us/mlp"]
    assert [c.label for c in board.attacks] == ["pgd:steps=4", "wander"]
    assert (str(board.dataset), board.home) == ("digits:classes=0-1", "us")
    same = Changes(models=("linear", "mlp:epochs=2"), attacks=("pgd:steps=4", "wander"))
    assert changed(board, same) == board
    assert changed(board, Changes(attacks=("pgd",))).attacks[0].selection.name == "pgd"
    assert changed(board, Changes(dataset="digits")).home == ""
    assert changed(board, Changes(dataset="digits:classes=0-1")).home == "us"
