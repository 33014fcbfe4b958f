"""The model's name is replaced, and no other byte."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxd.cloud.splice import add_member, rename_model, replace_model, set_member
from mlxd.protocol.errors import InvalidRequest

_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("model"), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text().filter(lambda key: key != "model"), _VALUES), st.text(), st.booleans(), st.integers(0, 3)
)
def test_only_the_model_changes(others: dict[str, object], model: str, ascii_only: bool, indent: int) -> None:
    """Whatever stands around it, nested `model` members too."""
    items = list(others.items())
    body = dict([*items[:1], ("model", model), *items[1:]])
    try:
        raw = json.dumps(body, ensure_ascii=ascii_only, indent=indent if indent > 0 else None).encode()
        orjson.loads(raw)
    except (UnicodeEncodeError, orjson.JSONDecodeError):
        return  # a lone surrogate, which no body has
    spliced = replace_model(raw, "org/näme")
    assert orjson.loads(spliced) == orjson.loads(raw) | {"model": "org/näme"}
    old, new = json.dumps(model, ensure_ascii=ascii_only).encode(), orjson.dumps("org/näme")
    assert len(spliced) == len(raw) - len(old) + len(new)


@pytest.mark.parametrize(
    ("raw", "spliced"),
    [
        (b'{"model":"a"}', b'{"model":"b"}'),
        (b' { "model"\t:\n"a" , "x" : 1.0 } ', b' { "model"\t:\n"b" , "x" : 1.0 } '),
        (b'{"x":"\\"model\\":\\"a\\"","model":"a"}', b'{"x":"\\"model\\":\\"a\\"","model":"b"}'),
        (b'{"x":{"model":"a"},"model":"a"}', b'{"x":{"model":"a"},"model":"b"}'),
        (b'{"x":[{"model":"a"}],"model":"a","y":"model"}', b'{"x":[{"model":"a"}],"model":"b","y":"model"}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"b"}'),
        (b'{"x":"model","model":"a:\\\\"}', b'{"x":"model","model":"b"}'),
        (b'{"a":1,"model":"x"}', b'{"a":1,"model":"b"}'),
    ],
)
def test_places_that_look_alike(raw: bytes, spliced: bytes) -> None:
    """Texts, values and nested members that look like the model's are left alone."""
    assert replace_model(raw, "b") == spliced


@pytest.mark.parametrize(
    "raw", [b'{"model":"a","model":"b"}', b'{"model":5,"model":"b"}', b'{"model":{"model":"x"},"mod\\u0065l":"b"}']
)
def test_a_model_given_twice_is_refused(raw: bytes) -> None:
    """We and the upstream might read different ones, and a rule could be gone around."""
    with pytest.raises(InvalidRequest, match="exactly once"):
        replace_model(raw, "x")


def test_a_body_of_megabytes_is_no_trouble() -> None:
    """Long texts and deep nesting neither overflow a stack nor take quadratic time."""
    text = "\\n\\\\" * 1_000_000
    raw = b'{"x":"%b","y":%b,"model":"a"}' % (text.encode(), b"[" * 900 + b"]" * 900)
    assert replace_model(raw, "b") == raw[:-4] + b'"b"}'


@pytest.mark.parametrize("old", [b"null", b"{}", b'{"a":"}","b":[{"c":"{"}],"d":{}}'])
def test_a_member_is_set_whatever_it_holds(old: bytes) -> None:
    """Braces in texts do not count; null is replaced like an object."""
    raw = b'{"x":{"o":1},"o":' + old + b',"y":"z"}'
    assert set_member(raw, "o", {"n": 1}) == b'{"x":{"o":1},"o":{"n":1},"y":"z"}'


@pytest.mark.parametrize(("raw", "added"), [(b" {}", b' {"o":1}'), (b'{"x":2}', b'{"o":1,"x":2}')])
def test_a_member_is_added_at_the_beginning(raw: bytes, added: bytes) -> None:
    """With a comma where others follow."""
    assert add_member(raw, "o", 1) == added


@pytest.mark.parametrize(
    ("raw", "renamed"),
    [
        (b'{"id":1, "model" : "far", "model":"x"}', b'{"id":1, "model" : "m", "model":"x"}'),
        (b'{"message":{"a":{"model":"x"},"model":"far"}}', b'{"message":{"a":{"model":"x"},"model":"m"}}'),
        (b'{"response":{"model":"far"},"x":1}', b'{"response":{"model":"m"},"x":1}'),
        (b'{"other":{"model":"x"},"response":"model","b":{"model":"x"}}', None),
        (b'{"response":{},"other":{"model":"x"}}', None),
        (b'{"content":["model",{"model":"x"}],"a":"\\"model\\":"}', None),
        (b'{"model":null}', None),
    ],
)
def test_the_model_that_answers_is_renamed(raw: bytes, renamed: bytes | None) -> None:
    """At the top, or in what an event holds; what an answer says of models is left alone."""
    assert rename_model(raw, "m") == (raw if renamed is None else renamed)
