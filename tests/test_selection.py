"""Selections, from text and from TOML."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.plugin import Selection
from harness.selection import parse_selection

PGD = Selection("pgd", (("steps", "40"), ("restarts", "2")))
DEEP = (("max_iter", "50"), ("k", "3"))


def parse(raw):
    return parse_selection(raw, "--attack")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pgd", Selection("pgd")),
        ("acme/pgd", Selection("acme/pgd")),
        ("art:DeepFool", Selection("art:DeepFool")),
        (" acme/art : DeepFool ", Selection("acme/art:DeepFool")),
        ("art:DeepFool:max_iter=50,k=3", Selection("art:DeepFool", DEEP)),
        ("t:attack=art:DeepFool", Selection("t", (("attack", "art:DeepFool"),))),
        (
            "t:attack=(art:DeepFool:max_iter=50,k=3)",
            Selection("t", (("attack", Selection("art:DeepFool", DEEP)),)),
        ),
        ("pgd:steps=40,restarts=2", PGD),
        (" pgd : steps = 40 , restarts=2 ", PGD),
        ("digits:classes=", Selection("digits", (("classes", ""),))),
        ("ckpt:path=/a=b:c.pt", Selection("ckpt", (("path", "/a=b:c.pt"),))),
        ("ckpt:path=C:\\x.pt", Selection("ckpt", (("path", "C:\\x.pt"),))),
        ("ckpt:path=my file (1,2).pt", Selection("ckpt", (("path", "my file (1,2).pt"),))),
        (
            "transfer:source=mlp,attack=(pgd:steps=40,restarts=2)",
            Selection("transfer", (("source", "mlp"), ("attack", PGD))),
        ),
        (
            "a:x=(b:y=(pgd:steps=40,restarts=2),z=1),w=2",
            Selection("a", (("x", Selection("b", (("y", PGD), ("z", "1")))), ("w", "2"))),
        ),
    ],
)
def test_text_is_read(text, expected):
    assert parse(text) == expected


def test_a_selection_without_options_is_its_name_however_it_is_written():
    plain = Selection("transfer", (("source", "mlp"),))
    assert parse("transfer:source=mlp") == plain
    assert parse("transfer:source=(mlp)") == plain
    assert parse({"use": "transfer", "source": {"use": "mlp"}}) == plain


def test_a_toml_table_selects_what_the_text_does():
    table = tomllib.loads("""
        use = "transfer"
        source = "mlp"
        attack = { use = "pgd", steps = "40", restarts = "2" }
    """)
    short = {"use": "transfer:source=mlp", "attack": "pgd:steps=40,restarts=2"}
    expected = parse("transfer:source=mlp,attack=(pgd:steps=40,restarts=2)")
    assert parse(table) == expected
    assert parse(short) == expected
    deep = {"use": "transfer", "attack": "art:DeepFool:max_iter=3"}
    assert parse(deep) == parse("transfer:attack=(art:DeepFool:max_iter=3)")
    assert parse({"use": "art:DeepFool", "max_iter": "50", "k": "3"}) == parse(
        "art:DeepFool:max_iter=50,k=3"
    )


def test_toml_values_keep_their_type():
    selection = parse({"use": "pgd", "steps": 40, "eps": 0.3, "flag": True, "grid": [1, 2]})
    assert selection.given == {"steps": 40, "eps": 0.3, "flag": True, "grid": (1, 2)}
    assert str(selection) == "pgd:steps=40,eps=0.3,flag=true,grid=1+2"
    assert hash(selection) == hash(parse({"use": "pgd"} | selection.given))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the name is missing"),
        (":steps=1", "the name is missing"),
        ("p gd", "'p gd' is not a name"),
        ("a/b/c", "'a/b/c' is not a name"),
        ("pgd:", "an option is missing"),
        ("pgd:steps=1,", "an option is missing"),
        ("pgd:steps,restarts=2", "option 'steps' has no '=value'"),
        ("pgd:steps:restarts", "option 'restarts' has no '=value'"),
        ("art:DeepFool:", "an option is missing"),
        ("art:Deep Fool:k=3", "'Deep Fool:k' is not an option's name"),
        ("t:attack=art:DeepFool:k=3", "write attack=(art:DeepFool:k=3)"),
        ("pgd:=1", "'' is not an option's name"),
        ("pgd:my-steps=1", "'my-steps' is not an option's name"),
        ("pgd:steps=1,steps=2", "option 'steps' is given twice"),
        ("t:attack=(pgd:steps=1,steps=2)", "option 'steps' is given twice"),
        ("t:attack=pgd:steps=1", "write attack=(pgd:steps=1)"),
        ("t:attack=(pgd:steps=1", "a '(' without its ')'"),
        ("t:attack=pgd:steps=1)", "a ')' without its '('"),
        ("t:attack=(pgd)(fgsm)", "a ')' without its '('"),
        ("a:x=" + "(a:x=" * 30 + "1" + ")" * 30, "more than 20 parentheses"),
    ],
)
def test_what_is_malformed_is_said_with_the_right_form(text, said):
    with pytest.raises(UsageError) as error:
        parse(text)
    message = str(error.value)
    assert message.startswith(f"--attack: {text!r}: ")
    assert said in message
    assert "name:option=value,option=value" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"steps": 1}, "the key 'use' is missing"),
        ({"use": 3}, "expected a text or a table"),
        ({"use": "pgd", "my-steps": 1}, "'my-steps' is not an option's name"),
        ({"use": "pgd:steps=1", "steps": 2}, "option 'steps' is given twice"),
        ({"use": "t", "attack": {"steps": 1}}, "the key 'use' is missing"),
        ({"use": "t", "path": "a,b"}, "'a,b' has a comma"),
        ({"use": "t", "path": "a)b"}, "a ')' without its '('"),
    ],
)
def test_a_malformed_table_is_said(table, said):
    with pytest.raises(UsageError, match=r"^board\.toml: attacks: ") as error:
        parse_selection(table, "board.toml: attacks")
    assert said in str(error.value)


NAMES = st.from_regex(
    r"[a-z0-9][a-z0-9._-]{0,6}(/[a-z0-9][a-z0-9._-]{0,6})?(:[A-Za-z0-9][A-Za-z0-9._-]{0,6})?",
    fullmatch=True,
)
KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="(),:"), max_size=8).map(str.strip)
PARENTHESISED = st.tuples(PLAIN.filter(bool), PLAIN).map("{0[0]}({0[1]},{0[0]})".format)


def selections(values):
    options = st.dictionaries(KEYS, values, max_size=3).map(lambda d: tuple(d.items()))
    return st.builds(Selection, NAMES, options)


VALUES = st.recursive(
    PLAIN | PARENTHESISED, lambda inner: selections(inner).filter(lambda s: s.options), max_leaves=6
)


@given(selections(VALUES))
def test_what_is_written_is_read_again(selection):
    assert parse(str(selection)) == selection


@given(st.text(alphabet="ab:=,() /\n", max_size=20))
def test_any_text_is_a_selection_that_survives_or_a_usage_error(text):
    try:
        selection = parse(text)
    except UsageError:
        return
    assert parse(str(selection)) == selection


@given(st.text(alphabet="ab:=,() ", max_size=12))
def test_any_toml_string_is_written_as_text_that_reads_the_same(text):
    try:
        selection = parse({"use": "t", "attack": text})
    except UsageError:
        return
    assert parse(str(selection)) == selection
