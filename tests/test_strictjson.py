"""Strict JSON: what it refuses, and that each error says where and what."""

from __future__ import annotations

from typing import Any

import pytest

from nearzip import strictjson
from nearzip.errors import CorruptError


def test_what_is_sound_is_read() -> None:
    text = '{"a": [1, 2.5, null, true, "é", "\\ud83d\\ude00"], "b": {}}'
    assert strictjson.load(text.encode(), "x") == {"a": [1, 2.5, None, True, "é", "😀"], "b": {}}
    assert strictjson.load(b"[" * 16 + b"]" * 16, "x", 16)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"one": 1, "two": 2, "two": 3}', "plan: duplicate key 'two'"),
        (b'{"a": {"k": 1, "k": 1}}', "plan: duplicate key 'k'"),
        (b"[NaN]", "plan: NaN is not allowed"),
        (b"[-Infinity]", "plan: -Infinity is not allowed"),
        (b'["\\ud800"]', "plan: invalid JSON"),
        (b"\xff", "plan: invalid JSON"),
        (b"", "plan: invalid JSON"),
        (b"{", "plan: invalid JSON"),
        (b"[" * 17 + b"]" * 17, "plan: nested deeper than 16"),
        (b"[" * 10**6, "plan: nested deeper than 16"),
        (b'{"a":' * 10**5, "plan: nested deeper than 16"),
        (b"1" * 5000, "plan: invalid JSON"),
    ],
)
def test_what_is_not_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CorruptError) as found:
        strictjson.load(data, "plan")
    assert str(found.value).startswith(message)
    assert len(str(found.value)) < 400


def test_brackets_in_strings_are_no_nesting() -> None:
    deep = "[" * 100
    assert strictjson.load(f'["{deep}", "\\"{deep}"]'.encode(), "x", 1) == [deep, f'"{deep}']


KINDS: strictjson.Kinds = {"name": str, "count": int, "extra": (str, type(None))}


def test_fields_are_these_and_of_these_types() -> None:
    good = {"name": "a", "count": 3, "extra": None}
    assert strictjson.fields(good, "x", KINDS) is good


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "index: segment 3: is not an object"),
        ({"name": "a", "count": 3}, "index: segment 3: field 'extra' is missing"),
        ({"name": "a", "count": 3, "extra": None, "more": 1}, "index: segment 3: field 'more' is unknown"),
        ({"name": "a", "count": True, "extra": None}, "index: segment 3: field 'count' has the wrong type"),
        ({"name": 1, "count": 3, "extra": None}, "index: segment 3: field 'name' has the wrong type"),
        ({"name": "a", "count": 3, "extra": 0}, "index: segment 3: field 'extra' has the wrong type"),
        ({"name": "a", "count": 3, "extra": None, "z" * 10**6: 1}, f"index: segment 3: field '{'z' * 80}' is unknown"),
    ],
)
def test_other_fields_are_named(document: Any, message: str) -> None:
    with pytest.raises(CorruptError) as found:
        strictjson.fields(document, "index: segment 3", KINDS)
    assert str(found.value) == message


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (strictjson.text, 3),
        (strictjson.as_dict, []),
        (strictjson.as_list, {}),
        (strictjson.integer, True),
        (strictjson.integer, 1.0),
        (strictjson.integer, 1 << 63),
        (strictjson.number, "1"),
        (strictjson.number, True),
        (strictjson.number, float("inf")),
        (strictjson.number, 10**400),
        (strictjson.numbers, {}),
        (strictjson.numbers, {"a": None}),
    ],
)
def test_values_of_another_kind_are_refused(check: Any, value: Any) -> None:
    with pytest.raises(CorruptError, match=r"^here"):
        check(value, "here")


def test_an_index_out_of_range_is_named() -> None:
    assert strictjson.pick(["a", "b"], 1, "x") == "b"
    for index in (2, -1, True, 1.0, "1", None):
        with pytest.raises(CorruptError, match=r"x: index .* is out of range \(there are 2\)"):
            strictjson.pick(["a", "b"], index, "x")
    with pytest.raises(CorruptError, match="x: has 2 items, not 3"):
        strictjson.as_list([1, 2], "x", 3)
