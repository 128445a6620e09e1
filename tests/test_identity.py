"""Keys are a promise: a changed key orphans every record ever stored."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import PluginError
from harness.identity import canonical, key_of, plain

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
identities = st.dictionaries(st.text(), values, max_size=5)


def test_text_and_key_by_hand():
    identity = {"b": (1, 2.0, 1e-05), "a": {"z": None, "y": True}, "ε": "8/255"}
    text = '{"a":{"y":true,"z":null},"b":[1,2.0,1e-05],"\\u03b5":"8/255"}'
    assert canonical(identity) == text
    assert key_of(identity) == hashlib.sha256(text.encode()).hexdigest()[:32]


@settings(max_examples=40)
@given(identities)
def test_survives_the_file(identity):
    """What is read back from JSON has the key of what was written, whatever its layout."""
    stored = json.loads(json.dumps(plain(identity), indent=2, ensure_ascii=False))
    assert key_of(stored) == key_of(identity)


@settings(max_examples=40)
@given(identities)
def test_order_does_not_matter(identity):
    turned = dict(reversed(identity.items()))
    assert canonical(turned) == canonical(identity)


@settings(max_examples=40)
@given(identities, identities)
def test_different_identities_have_different_texts(one, other):
    """Compared as JSON, where 1, 1.0 and true are three things and (1,) is [1]."""
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (canonical(one) == canonical(other)) == same


def test_kinds_of_number_are_kept_apart():
    assert len({canonical({"v": v}) for v in (1, 1.0, True, "1", None, 0, 0.0, -0.0)}) == 8


@pytest.mark.parametrize(
    ("identity", "where"),
    [
        ({"eps": math.nan}, "identity.eps is nan"),
        ({"a": [0.1, math.inf]}, r"identity.a\[1\] is inf"),
        ({"a": {"b": {1, 2}}}, "identity.a.b is a set"),
        ({"a": b"bytes"}, "identity.a is a bytes"),
        ({"a": {1: "x"}}, "identity.a has the key 1, a int"),
    ],
)
def test_what_json_would_refuse_or_bend_is_refused_by_place(identity, where):
    with pytest.raises(PluginError, match=where):
        key_of(identity)


def test_key_does_not_depend_on_the_process():
    """Neither on the hash seed nor on the locale."""
    program = "from harness.identity import key_of; print(key_of({'b': {'ε': 0.1}, 'a': [1]}))"
    keys = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "LC_ALL": "C", "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert keys == {key_of({"a": [1], "b": {"ε": 0.1}})}
