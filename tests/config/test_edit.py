"""Edits keep comments, order and line ends, and mean exactly what was asked."""

import tomllib
from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlxd.config.edit import CannotEditError, change, edit, format_value, is_same
from mlxd.config.scan import StatementKind, comments, scan

DOCUMENT = """\
# My machine, my rules.

[pool]
# enough for two
memory = "24GB"     # half of it
preload = [
    "b",   # the good one
    # a is slow
    "a",
]

# The big ones go away.
[cloud.rules.big]
match = "glob:gpt-*"
to = ["p/m"]

# The private ones stay.
[cloud.rules.private]
match = "prefix:private-"
mode = "never"
"""


def test_a_value_is_replaced_where_it_stands() -> None:
    """Only the value's own characters change."""
    assert DOCUMENT.replace('"24GB" ', '"32GB" ') == edit(DOCUMENT, [(("pool", "memory"), "32GB")])


def test_the_same_value_changes_no_byte() -> None:
    """Setting what is already there returns the same text, also when it is written in another way."""
    assert edit(DOCUMENT, [(("pool", "memory"), "24GB"), (("pool", "preload"), ["b", "a"])]) == DOCUMENT
    assert edit("a = 0x10\n", [(("a",), 16)]) == "a = 0x10\n"


def test_a_list_keeps_the_comments_between_its_elements() -> None:
    """Elements are put in and taken out; the others keep their lines."""
    longer = edit(DOCUMENT, [(("pool", "preload"), ["b", "a", "c"])])
    assert '    "b",   # the good one\n    # a is slow\n    "a",\n    "c",\n]' in longer
    shorter = edit(DOCUMENT, [(("pool", "preload"), ["b"])])
    assert '"b",   # the good one' in shorter
    assert "# a is slow" in shorter


def test_a_reordered_list_loses_no_comment() -> None:
    """Where a comment cannot stay beside its element, it stays above the setting."""
    edited = edit(DOCUMENT, [(("pool", "preload"), ["a", "b"])])
    assert Counter(comments(DOCUMENT)) == Counter(comments(edited))


def test_trap_one_a_table_beside_dotted_keys_takes_no_neighbour() -> None:
    """A pair below dotted keys stays where it was when a sub-table is added."""
    edited = edit("a.b = 1\nz = 2\n", [(("a", "new", "x"), 1)])
    assert tomllib.loads(edited) == {"a": {"b": 1, "new": {"x": 1}}, "z": 2}
    assert edited == "a.b = 1\na.new.x = 1\nz = 2\n"


def test_trap_two_a_removed_table_takes_its_own_comment() -> None:
    """The comment above the next table stays with the next table, and the removed table's goes with it."""
    edited = edit(DOCUMENT, [(("cloud", "rules", "big"), None)])
    assert "# The private ones stay.\n[cloud.rules.private]\n" in edited
    assert "# The big ones go away." not in edited
    assert edited.startswith(DOCUMENT[: DOCUMENT.index("# The big ones")])


def test_trap_three_an_added_key_lands_above_the_next_tables_comment() -> None:
    """A comment that introduces the next table goes on introducing it."""
    edited = edit(DOCUMENT, [(("cloud", "rules", "big", "priority"), 5)])
    assert 'to = ["p/m"]\npriority = 5\n\n# The private ones stay.\n[cloud.rules.private]' in edited
    tight = "[a]\nx = 1\n# about b\n[b]\ny = 1\n"
    assert edit(tight, [(("a", "z"), 2)]) == "[a]\nx = 1\nz = 2\n# about b\n[b]\ny = 1\n"


def test_a_new_keyed_table_joins_its_siblings() -> None:
    """A new rule stands after the last rule, set apart by a blank line."""
    rule = ("cloud", "rules", "new")
    edited = edit(DOCUMENT + "\n[http]\nport = 1\n", [((*rule, "match"), "x"), ((*rule, "to"), [])])
    assert 'mode = "never"\n\n[cloud.rules.new]\nmatch = "x"\nto = []\n\n[http]' in edited


@pytest.mark.parametrize(
    ("text", "path", "value", "wanted"),
    [
        ("", ("a", "b"), 1, "[a]\nb = 1\n"),
        ("[a]\nx = 1\n\n", ("b",), 2, "b = 2\n[a]\nx = 1\n\n"),
        ("\n\n[a]\nx = 1\n", ("b",), 2, "b = 2\n\n\n[a]\nx = 1\n"),
        ("x = 1", ("a", "b"), 1, "x = 1\n\n[a]\nb = 1\n"),
        ("[a.b]\nx = 1\n", ("a", "y"), 2, "[a]\ny = 2\n\n[a.b]\nx = 1\n"),
        ("[a]\nx = 1\n[c]\n", ("a", "b", "y"), 2, "[a]\nx = 1\n\n[a.b]\ny = 2\n\n[c]\n"),
        ("a = { x = 1 }  # c\n", ("a", "y"), 2, "a = { x = 1, y = 2 }  # c\n"),
        ("a = { x = 1 }\n", ("a", "x"), None, "a = {}\n"),
        ("a = { x = 1, y = 2 }\n\n[c]\n", ("a", "x"), None, "a = { y = 2 }\n\n[c]\n"),
        ("a = { b = { x = 1 } }\n", ("a", "b", "x"), 2, "a = { b = { x = 2 } }\n"),
        ("[a]\nb.x = 1\nc = 1\n", ("a", "b", "y"), 2, "[a]\nb.x = 1\nb.y = 2\nc = 1\n"),
        ("[a]\n# y = 7\nx = 1\n", ("a", "y"), 2, "[a]\n# y = 7\ny = 2\nx = 1\n"),
        ("[a]\n# [a.b]\n# y = 7\n", ("a", "y"), 2, "[a]\ny = 2\n# [a.b]\n# y = 7\n"),
        ("[a]\r\nx = 1\r\n", ("a", "y"), 2, "[a]\r\nx = 1\r\ny = 2\r\n"),
        ("[a]\nx = 1", ("a", "y"), 2, "[a]\nx = 1\ny = 2\n"),
        ('[a]\nx = [\n  "b", # why\n]  # c\n', ("a", "x"), "y", '[a]\n# why\nx = "y"  # c\n'),
        ("[a]\n\n[c]\n", ("a", "y"), 2, "[a]\ny = 2\n\n[c]\n"),
        ('[a]\n"x#" = 1 # c\n', ("a", "x#"), 2, '[a]\n"x#" = 2 # c\n'),
        ("[a]\nx = '''\n#no\n''' # c\n", ("a", "x"), "y", '[a]\nx = "y" # c\n'),
        ('[a."o/n.5"]\npin = true\n', ("a", "o/n.5", "pin"), None, ""),
        ('[c]\n\n[a."o/n"]\npin = true\n\n[d]\n', ("a", "o/n", "pin"), None, "[c]\n\n[d]\n"),
        ('[a."o/n"]\npin = true\n# note\n', ("a", "o/n", "pin"), None, '[a."o/n"]\n# note\n'),
        ('# mine\n[a."o/n"]\npin = true\n', ("a", "o/n", "pin"), None, '# mine\n[a."o/n"]\n'),
        ("[a]\nx = 1\n\n[a.b]\ny = 1\n\n[c]\n", ("a",), None, "[c]\n"),
        ("[p.auth]\nenv = 'A'\n[p]\nx = 1\n", ("p", "auth"), {"env": "B"}, '[p]\nx = 1\nauth = { env = "B" }\n'),
        ("# top\n[a]\nx = 1\n", ("a",), None, "# top\n"),
        ("\ufeff", ("a", "b"), 1, "\ufeff[a]\nb = 1\n"),
        ("\ufeff[a]\r\nx = 1", ("a", "y"), 2, "\ufeff[a]\r\nx = 1\r\ny = 2\r\n"),
        ("\ufeffx = 1\n", ("x",), 2, "\ufeffx = 2\n"),
    ],
)
def test_small_documents(text: str, path: tuple[str, ...], value: Any, wanted: str) -> None:
    """Dotted keys, inline tables, commented-out defaults, line ends, quoted keys: each is edited in its own way."""
    assert wanted == edit(text, [(path, value)])


def test_lists_too_long_for_a_line_get_one_per_element() -> None:
    """A person can read and comment a long preload list."""
    names = [f"organisation/model-number-{number}" for number in range(5)]
    assert format_value(names).count("\n") == 6
    assert format_value(names[:2]).count("\n") == 0
    assert tomllib.loads("x = " + format_value(names)) == {"x": names}
    assert [format_value(["x" * characters]).count("\n") for characters in (96, 97)] == [0, 2]  # of 100 and of 101


def test_what_cannot_be_edited_safely_is_refused() -> None:
    """An array of tables, or a value where a table is needed, refuses the edit."""
    with pytest.raises(CannotEditError, match="array of tables"):
        edit("[[a]]\nx = 1\n", [(("b",), 1)])
    with pytest.raises(CannotEditError, match="'a' is no table"):
        edit("a = 1\n", [(("a", "b"), 1)])


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("[pool\n", "no TOML"),
        (DOCUMENT.replace("glob:gpt-*", "glob:*"), "something else"),
        (DOCUMENT.replace("24GB", "32GB").replace("  # half of it", ""), "a comment would be lost"),
        (DOCUMENT.replace("24GB", "32GB") + "# new", "a comment would be lost"),
    ],
)
def test_the_guards_hold_back_a_slip_of_the_editor(broken: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the splicing does wrong, a damaged text is never returned."""
    monkeypatch.setattr("mlxd.config.edit._set", lambda text, path, value: (broken, Counter()))
    with pytest.raises(CannotEditError, match=words):
        edit(DOCUMENT, [(("pool", "memory"), "32GB")])


def test_sameness_tells_types_apart() -> None:
    """A boolean is no number, 1 is not 1.0, and an empty table is as good as none."""
    assert not is_same({"a": True}, {"a": 1})
    assert not is_same({"a": 1.0}, {"a": 1})
    assert is_same({"a": {"b": {}}}, {})
    assert is_same({"a": float("nan")}, {"a": float("nan")})
    assert not is_same({"a": [1]}, {"a": [1, 1]})


KEYS = st.sampled_from(["a", "b", "c", "d-1", "x.y", "o/n", "#", 'q"', " ", "é"])
TEXTS = st.text(alphabet="ab#'\"\\=[]{},. \t\n\r\x00\x7fé", max_size=8)
VALUES = st.one_of(
    st.booleans(),
    st.integers(-5, 5),
    st.floats(allow_nan=False),
    TEXTS,
    st.lists(st.sampled_from(["m", "n", "#", '"']), max_size=4),
    st.dictionaries(KEYS, st.integers(0, 3) | TEXTS, max_size=2),
)
COMMENTS = st.sampled_from(["# c", "#", "# [x]", "# a = 1", '# "', "# '''", "#b=["])


def key_text(path: list[str], draw: st.DrawFn) -> str:
    """Write a key, each part bare or quoted."""
    return draw(st.sampled_from([".", " . "])).join(
        part if part.replace("-", "").isalnum() and part.isascii() and draw(st.booleans()) else format_value(part)
        for part in path
    )


def value_text(value: Any, draw: st.DrawFn) -> str:
    """Write a value in one of the ways that TOML has."""
    if isinstance(value, list) and draw(st.booleans()):
        lines = [f"  {format_value(item)}, {draw(st.sampled_from(['', '# in']))}\n" for item in value]
        first, last = draw(st.sampled_from([" # open\n", "\n"])), draw(st.sampled_from(["", "  # end\n"]))
        return f"[{first}{''.join(lines)}{last}]"
    if isinstance(value, str) and value.isprintable() and "'" not in value and draw(st.booleans()):
        return draw(st.sampled_from(["'{}'", "'''\n{}'''"])).format(value)
    return format_value(value)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Random TOML: tables, dotted keys, inline tables, long lists, comments everywhere, both line ends."""
    lines: list[str] = []
    for _ in range(draw(st.integers(0, 10))):
        what = draw(st.sampled_from(["pair", "pair", "pair", "table", "comment", "blank"]))
        end = draw(st.sampled_from(["", "", "  # side"]))
        path = draw(st.lists(KEYS, min_size=1, max_size=3))
        if what == "pair":
            line = f"{key_text(path, draw)} = {value_text(draw(VALUES), draw)}{end}"
        elif what == "table":
            line = f"[{key_text(path, draw)}]{end}"
        else:
            line = draw(COMMENTS) if what == "comment" else draw(st.sampled_from(["", "  "]))
        candidate = [*lines, line]
        try:
            tomllib.loads("\n".join(candidate))
        except tomllib.TOMLDecodeError:
            continue
        lines = candidate
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines) + draw(st.sampled_from(["", "\n"]))


@given(documents())
def test_scanning_loses_nothing_and_finds_every_value(text: str) -> None:
    """The statements' texts are the document, and their paths are its keys."""
    statements = scan(text)
    assert text == "".join(statement.text for statement in statements)
    document = tomllib.loads(text)
    for statement in statements:
        node: Any = document
        for part in statement.path:
            node = node[part]


PATHS = st.lists(KEYS, min_size=1, max_size=3).map(tuple)
Changes = list[tuple[tuple[str, ...], Any]]


def foreign_comments(text: str, changes: Changes) -> Counter[str]:
    """Return the comments that no change may take: those that belong to nothing which a change names."""
    foreign = Counter[str]()
    next_header: tuple[str, ...] = ()
    for statement in reversed(scan(text)):
        owners = [statement.path] if statement.path else [statement.table, next_header]
        if statement.kind is StatementKind.TABLE:
            next_header = statement.path
        elif statement.kind is StatementKind.BLANK:
            next_header = ()
        if not any(owner[: len(path)] == path for owner in owners for path, _ in changes):
            foreign.update(comments(statement.text))
    return foreign


@settings(max_examples=200)
@given(documents(), st.lists(st.tuples(PATHS, st.none() | VALUES), min_size=1, max_size=4))
def test_random_edits_mean_what_they_say_and_lose_no_foreign_comment(text: str, changes: Changes) -> None:
    """An edit reads back as the same change of the parsed document, or is refused when a value is in the way."""
    document = tomllib.loads(text)
    try:
        wanted = change(document, changes)
    except CannotEditError:
        with pytest.raises(CannotEditError, match="is no table"):
            edit(text, changes)
        return
    edited = edit(text, changes)
    assert is_same(wanted, tomllib.loads(edited))
    assert not foreign_comments(text, changes) - Counter(comments(edited))
    assert not Counter(comments(edited)) - Counter(comments(text))


@given(documents(), PATHS, VALUES)
def test_setting_and_unsetting_leads_back(text: str, path: tuple[str, ...], value: Any) -> None:
    """What was set anew can be unset, and the document then means what it meant before."""
    document = tomllib.loads(text)
    node: Any = document
    for part in path:
        node = node.get(part) if isinstance(node, dict) else 0
    assume(node is None)
    assert is_same(document, tomllib.loads(edit(edit(text, [(path, value)]), [(path, None)])))
