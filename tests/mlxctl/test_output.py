"""Tables, pairs, sizes, durations, errors and the JSON document."""

from __future__ import annotations

import json
import math
import operator

import pytest

from mlxctl import output
from mlxd.protocol.errors import ControlError, InvalidValue

ROWS = [("smollm2-135m-instruct", "ready", 12, None), ("org/a-much-longer-name-of-a-model", "loading", 3, "34 %")]
HEADS = ["MODEL", "STATE", "REQUESTS", "LOADED"]


def columns(*heads: str) -> list[output.Column]:
    """Return columns that read the cells of a row by their place."""
    return [(head, operator.itemgetter(place)) for place, head in enumerate(heads)]


def test_table_golden() -> None:
    """Columns are as wide as their widest cell, numbers stand to the right, None is a dash, no line ends in blanks."""
    assert output.format_table(columns(*HEADS), ROWS).splitlines() == [
        "MODEL                              STATE    REQUESTS  LOADED",
        "smollm2-135m-instruct              ready          12       -",
        "org/a-much-longer-name-of-a-model  loading         3    34 %",
    ]


def test_table_is_cut_to_the_terminal() -> None:
    """In a narrow terminal the widest text gives way and shows that it did; no line is wider than the terminal."""
    rows = [("a-model", "gets its weights from the disk", 12)]

    lines = output.format_table(columns("MODEL", "NOTE", "REQUESTS"), rows, width=44).splitlines()

    assert max(len(line) for line in lines) <= 44
    assert lines[1] == "a-model  gets its weights from ...        12"


def test_names_and_sizes_are_not_cut_while_a_column_can_be_left_out() -> None:
    """What is typed into the next command is whole at 80 columns: a column without a value goes before it."""
    heads = ["MODEL", "STATE", "MEMORY", "RUNNING", "WAITING", "EXPIRES", "NOTE"]
    row = ("smollm2-135m-instruct", "ready", "185.9 MB (177.3 MiB)", 0, 0, "in 29m59s", None)
    optional = ("WAITING", "EXPIRES", "MEMORY", "NOTE")

    assert output.format_table(columns(*heads), [row], width=80, optional=optional).splitlines() == [
        "MODEL                  STATE                MEMORY  RUNNING  WAITING  EXPIRES",
        "smollm2-135m-instruct  ready  185.9 MB (177.3 MiB)        0        0  in 29m59s",
    ]
    assert output.format_table(columns(*heads), [row], width=60, optional=optional).splitlines() == [
        "MODEL                  STATE                MEMORY  RUNNING",
        "smollm2-135m-instruct  ready  185.9 MB (177.3 MiB)        0",
    ]


def test_table_never_loses_a_column() -> None:
    """A terminal that is far too narrow still gets every column, cut to a few letters."""
    lines = output.format_table(columns(*HEADS), ROWS, width=10).splitlines()

    assert lines[0].split() == ["MODEL", "STATE", "REQUESTS", "LOADED"]


def test_width_comes_from_the_terminal_or_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a pipe nothing is cut, unless COLUMNS says how wide it is."""
    assert output.terminal_width() is None

    monkeypatch.setenv("COLUMNS", "57")
    assert output.terminal_width() == 57


def test_pairs_stand_under_each_other() -> None:
    """Names are padded to the longest that is shown, and a value of None leaves its line out."""
    assert output.format_pairs([("pid", 4711), ("reason", None), ("memory", "auto")]) == "pid:    4711\nmemory: auto"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, None),
        (math.inf, "never"),
        (0.0, "0s"),
        (0.25, "200ms"),
        (59.9, "59s"),
        (125.0, "2m5s"),
        (3 * 3600 + 125, "3h2m"),
        (86400.0 * 3 + 3600 * 4 + 59, "3d4h"),
    ],
)
def test_durations_have_two_units(seconds: float | None, shown: str | None) -> None:
    """A duration is shown in its two largest units."""
    assert output.show_duration(seconds) == shown


@pytest.mark.parametrize(
    ("path", "shown"), [("/home/ada/.mlxd/x", "~/.mlxd/x"), ("/home/adam/x", "/home/adam/x"), ("/tmp/x", "/tmp/x")]
)
def test_paths_in_the_home_folder(path: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own folder is shown as `~`, and nobody else's."""
    monkeypatch.setenv("HOME", "/home/ada")
    assert output.show_path(path) == shown


def test_error_golden() -> None:
    """An error says what, why with numbers, the next command and a stable code, each on its line."""
    error = ControlError(
        "memory limit 32.0 GB (29.8 GiB) is below the pinned models\npinned: a 22.8 GiB + b 11.9 GiB = 34.7 GiB",
        hint="mlxctl model unpin b\nthe same with --force",
        code="pool.pinned_exceeds_limit",
    )

    assert output.format_error(error).splitlines() == [
        "error: memory limit 32.0 GB (29.8 GiB) is below the pinned models",
        "  pinned: a 22.8 GiB + b 11.9 GiB = 34.7 GiB",
        "  try: mlxctl model unpin b",
        "  try: the same with --force",
        "  code: pool.pinned_exceeds_limit",
    ]


def test_error_as_data_leaves_out_what_it_has_not() -> None:
    """The JSON error has the code, message and exit status, and only those details that there are."""
    assert output.describe_error(InvalidValue("too small", param="pool.memory")) == {
        "code": "settings.invalid_value",
        "message": "too small",
        "exit": 10,
        "field": "pool.memory",
    }


def test_json_has_its_schema_and_no_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    """The document starts with its schema, and a duration that never ends is the word that settings use."""
    output.print_json({"keep_alive_s": math.inf, "models": ({"name": "Ä"},)})

    printed = capsys.readouterr().out
    assert json.loads(printed) == {"schema": "mlxctl/v1", "keep_alive_s": "never", "models": [{"name": "Ä"}]}
    assert printed.splitlines()[1] == '  "schema": "mlxctl/v1",'
