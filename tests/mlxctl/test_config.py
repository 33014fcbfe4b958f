"""`mlxctl config` about the whole file: what is sent, what is shown, what becomes of an edit that is refused."""

from __future__ import annotations

import io
import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxctl.cli import main
from mlxd.protocol.errors import Conflict, FileInvalid, InvalidValue
from mlxd.protocol.operations import OPERATIONS
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl

TEXT = '# mine\n[pool]\nmemory = "8GB"\n'
READ: dict[str, Any] = {"path": "/h/config.toml", "exists": True, "text": TEXT, "sha256": "abc", "gen": 7}
CHANGED: dict[str, Any] = {
    "gen": 8,
    "changed": [{"key": "pool.memory", "old": "8GB", "new": "9GB"}],
    "warnings": [],
    "rewritten": True,
    "runtime_only": False,
}
DIFFERENCE = {"key": "pool.memory", "old": "8GB", "new": "9GB"}


@pytest.fixture
def fake(own_home: None) -> Iterator[FakeControl]:
    """A daemon with a file to edit."""
    answers: dict[str, Any] = {"settings.read": READ, "settings.apply": CHANGED, "settings.set": CHANGED}
    with FakeControl(Home.from_environment().socket, answers, caps=["persist"]) as control:
        yield control


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an editor that writes, at each call, the next file of a folder over the text, or leaves it alone."""
    folder = tmp_path / "edits"
    folder.mkdir()
    script = tmp_path / "editor.sh"
    script.write_text(
        f'#!/bin/sh\nset -e\n[ "$1" = -x ]\nls -l "$2" > {tmp_path}/mode\n'
        f'next=$(ls {folder} | head -1)\n[ -z "$next" ] || mv {folder}/$next "$2"\n'
    )
    script.chmod(0o700)
    monkeypatch.setenv("VISUAL", f"'{script}' -x")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return folder


def left(tmp_path: Path) -> list[str]:
    """Return the texts that are kept."""
    return [path.read_text() for path in tmp_path.glob("mlxctl-*/config.toml")]


def test_edit(fake: FakeControl, editor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The copy is edited, and goes to the daemon with the digest and generation it was made of; no copy stays."""
    (editor / "1").write_text(TEXT + "# more\n")

    assert main(["config", "edit"]) == 0
    request = fake.requests[-1]
    assert request["p"] == {"text": TEXT + "# more\n", "name": "config.toml", "base": "abc"}
    assert request["if_gen"] == 7
    assert capsys.readouterr().out.splitlines() == ["pool.memory: 8GB -> 9GB", "generation 8"]
    assert left(tmp_path) == []
    assert (tmp_path / "mode").read_text().startswith("-rw-------")


def test_edit_that_changes_nothing(fake: FakeControl, editor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An editor that is left without a change asks the daemon for nothing."""
    assert main(["config", "edit"]) == 0
    assert capsys.readouterr().out == "unchanged\n"
    assert fake.asked("settings.apply") == []


def test_refused_edit_where_nobody_can_be_asked(
    fake: FakeControl,
    editor: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a terminal the error is the end; the text is kept, and the hint says how to go on."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    fake.answers["settings.apply"] = FileInvalid("config.toml:3:1: pool.memory: 7 is out of bounds")
    (editor / "1").write_text("bad")

    assert main(["config", "edit"]) == 10
    shown = capsys.readouterr().err
    assert "config.toml:3:1: pool.memory: 7 is out of bounds" in shown
    assert "nothing was changed; your text is kept as" in shown
    assert "try: mlxctl config apply " in shown
    assert left(tmp_path) == ["bad"]


@pytest.mark.parametrize(("answers", "status", "kept"), [("y\n", 0, []), ("\n", 0, []), ("n\n", 10, ["bad"])])
def test_refused_edit_on_a_terminal(
    fake: FakeControl,
    editor: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: str,
    status: int,
    kept: list[str],
) -> None:
    """Edit again, which is the default, opens the refused text; giving up keeps it."""
    terminal = io.StringIO(answers)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    refusals = [InvalidValue("no such model")]
    fake.answers["settings.apply"] = lambda _: refusals.pop() if refusals else CHANGED
    (editor / "1").write_text("bad")
    (editor / "2").write_text("good")

    assert main(["config", "edit"]) == status
    assert [asked["text"] for asked in fake.asked("settings.apply")] == ["bad", "good"][: 2 if status == 0 else 1]
    assert left(tmp_path) == kept


def test_edit_of_what_others_have_changed(
    fake: FakeControl, editor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A conflict is not asked about: the text is kept."""
    fake.answers["settings.apply"] = Conflict("config.toml was changed since it was read")
    (editor / "1").write_text("mine")

    assert main(["config", "edit"]) == 5
    assert left(tmp_path) == ["mine"]


@pytest.mark.parametrize(
    ("command", "words"),
    [("no-such-editor --x", "the editor 'no-such-editor' cannot be run"), ("false", "'false' ended with status 1")],
)
def test_editor_that_fails(
    fake: FakeControl,
    editor: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    words: str,
) -> None:
    """Nothing is sent, nothing is left behind."""
    monkeypatch.setenv("VISUAL", command)

    assert main(["config", "edit"]) == 1
    assert words in capsys.readouterr().err
    assert (fake.asked("settings.apply"), left(tmp_path)) == ([], [])


def test_edit_without_an_editor(
    fake: FakeControl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nobody sits at a terminal no vi is opened."""
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    assert main(["config", "edit"]) == 2
    assert "neither VISUAL nor EDITOR is set" in capsys.readouterr().err


def test_apply(fake: FakeControl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, or stdin, goes as it is, with its name for the errors."""
    file = tmp_path / "new.toml"
    file.write_bytes("\ufeff[pool]\r\n".encode())
    assert main(["config", "apply", str(file), "--dry-run", "--if-generation", "3"]) == 0
    assert fake.requests[-1]["p"] == {"text": "\ufeff[pool]\r\n", "name": str(file)}
    assert (fake.requests[-1]["dry"], fake.requests[-1]["if_gen"]) == (True, 3)

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[queue]\n")))
    assert main(["config", "apply", "-"]) == 0
    assert fake.requests[-1]["p"] == {"text": "[queue]\n", "name": "-"}


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (None, 4, "cannot be read: No such file or directory"),
        (b"\xff", 10, "is not UTF-8"),
        (b"#" * (2**19 + 1), 10, "more than 524288 bytes"),
    ],
)
@pytest.mark.parametrize("verb", ["apply", "validate"])
def test_file_that_cannot_be_sent(
    fake: FakeControl,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    content: bytes | None,
    status: int,
    words: str,
) -> None:
    """What is no text, too large or not there is said before anybody is asked."""
    file = tmp_path / "new.toml"
    if content is not None:
        file.write_bytes(content)
    assert main(["config", verb, str(file)]) == status
    assert words in capsys.readouterr().err
    assert fake.requests == []


def test_runtime_only(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """The frame says so, and so does the reply."""
    fake.answers["settings.set"] = {**CHANGED, "rewritten": False, "runtime_only": True}
    assert main(["pool", "set-memory", "9GB", "--runtime-only"]) == 0
    assert fake.requests[-1]["persist"] is False
    assert capsys.readouterr().out.splitlines()[-1] == "generation 8, runtime-only: lost when the daemon ends"


def test_runtime_only_of_an_older_daemon(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """One that would ignore the key, and save, is not asked."""
    fake.hello["caps"] = ["dry"]
    assert main(["pool", "set-memory", "9GB", "--runtime-only"]) == 9
    assert "would save it" in capsys.readouterr().err
    assert fake.requests == []


def test_every_verb_that_changes_settings_offers_runtime_only(capsys: pytest.CaptureFixture[str]) -> None:
    """The option stands in the help of each, and not of those that are about the file."""
    for words in (["preload", "set"], ["model", "pin"], ["cloud", "enable"], ["config", "rollback"]):
        main([*words, "--help"])
        assert "--runtime-only" in capsys.readouterr().out
    for words in (["config", "reload"], ["model", "load"]):
        main([*words, "--help"])
        assert "--runtime-only" not in capsys.readouterr().out
    assert not OPERATIONS["settings.reload"].can_be_runtime_only


def test_history_golden(fake: FakeControl, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Newest first, with time, source, keys, and which is in force."""
    monkeypatch.setattr("time.localtime", lambda seconds: __import__("time").gmtime(seconds))
    line = {"gen": 2, "time_ms": 86_400_000, "source": "settings.set", "changed": ["a.b", "c.d"]}
    fake.answers["settings.history"] = {
        "gen": 2,
        "generations": [
            {**line, "runtime_only": True, "current": True},
            {**line, "gen": 1, "time_ms": None, "source": None, "changed": [], "runtime_only": False, "current": False},
        ],
    }
    assert main(["config", "history"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "GEN  TIME                 SOURCE        CHANGED   NOTE",
        "  2  1970-01-02 00:00:00  settings.set  a.b, c.d  in force, runtime-only",
        "  1  -                    -             -         -",
    ]


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ([], ["pool.memory: 8GB -> 9GB (in the file, not taken up yet)", "pool.memory: 8GB -> 9GB (runtime-only)"]),
        (["--runtime"], ["pool.memory: 8GB -> 9GB (runtime-only)"]),
        (["--file"], ["pool.memory: 8GB -> 9GB (in the file, not taken up yet)"]),
    ],
)
def test_diff_of_file_and_runtime(
    fake: FakeControl, capsys: pytest.CaptureFixture[str], words: list[str], lines: list[str]
) -> None:
    """What is not taken up yet and what is runtime-only are told apart."""
    fake.answers["settings.diff"] = {"gen": 7, "overlay": [DIFFERENCE], "pending": [DIFFERENCE], "problem": None}
    assert main(["config", "diff", *words]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_diff_with_a_broken_file(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """It cannot be compared, which is an error; what is runtime-only can."""
    problem = FileInvalid("config.toml:1:1: broken").to_wire()
    fake.answers["settings.diff"] = {"gen": 7, "overlay": [DIFFERENCE], "pending": [], "problem": problem}
    assert main(["config", "diff"]) == 10
    assert main(["config", "diff", "--runtime"]) == 0
    assert capsys.readouterr().out == "pool.memory: 8GB -> 9GB (runtime-only)\n"


def test_diff_of_generations(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """One is compared with the file now, two with each other; three are too many, and so are flags beside them."""
    fake.answers["settings.diff"] = {"gen": 7, "old": 3, "new": None, "changed": []}
    assert main(["config", "diff", "3"]) == 0
    assert main(["config", "diff", "3", "5"]) == 0
    assert fake.asked("settings.diff") == [{"old": 3}, {"old": 3, "new": 5}]
    assert capsys.readouterr().out == "no difference\n" * 2
    assert main(["config", "diff", "1", "2", "3"]) == 2
    assert main(["config", "diff", "1", "--file"]) == 2


def test_list_names_the_line(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """With --show-origin a setting of the file has its file:line."""
    setting = {"value": 5, "written": 5, "default": 5, "line": None}
    fake.answers["settings.list"] = {
        "path": "/h/config.toml",
        "settings": [
            {**setting, "key": "a.b", "origin": "file", "line": 3},
            {**setting, "key": "a.c", "origin": "overlay"},
            {**setting, "key": "a.d", "origin": "default"},
        ],
    }
    main(["config", "list", "--show-origin"])
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "/h/config.toml:3",
        "overlay",
        "default",
    ]


def test_get_notes_what_is_saved(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """The value that holds is the data; that it is runtime-only is a note."""
    fake.answers["settings.get"] = {"value": 5, "written": 5, "saved": 3, "default": 1, "origin": "overlay"}
    assert main(["config", "get", "queue.size"]) == 0
    assert capsys.readouterr() == ("5\n", "note: runtime-only; saved is 3\n")


def test_schema_needs_no_daemon(own_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """It is printed as it is, or as the one document of --json."""
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"]["pool"]["properties"]["preload"]["type"] == "array"
    assert main(["config", "schema", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["json_schema"] == schema


def test_the_copy_is_nobody_elses(fake: FakeControl, editor: Path, tmp_path: Path) -> None:
    """The folder of the copy is this user's alone."""
    fake.answers["settings.apply"] = Conflict("changed")
    (editor / "1").write_text("mine")
    main(["config", "edit"])
    (folder,) = tmp_path.glob("mlxctl-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
