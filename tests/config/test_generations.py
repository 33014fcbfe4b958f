"""Whole files: applied, gone back to, listed; and an invalid file is never lost."""

import dataclasses
import hashlib
import os
import stat
from pathlib import Path

import pytest

from mlxd.atomic_file import SystemCalls
from mlxd.config import Terms
from mlxd.config.history import History
from mlxd.protocol.errors import CommitFailed, Conflict, FileInvalid, NotFound
from tests.support.settings import TEXT, Faults, MakeStore, assert_untouched

TERMS = Terms("test")
BROKEN = "[pool\nmemory = 1\n"


def sha256(text: str) -> str:
    """Return what a client learns of a file it reads."""
    return hashlib.sha256(text.encode()).hexdigest()


async def test_a_whole_file_is_one_transaction(make: MakeStore) -> None:
    """Every byte of it is taken, the overlay of what it changes goes, and a mistake changes nothing."""
    fixture = make(TEXT)
    await fixture.set("pool.memory", "8GB", persist=False)
    await fixture.set("pool.policy", "lfu", persist=False)
    text = '\ufeff# another\r\n[pool]\r\nmemory = "50%"\r\n'
    result = await fixture.store.replace(text, TERMS)
    assert fixture.path.read_bytes() == text.encode()
    assert fixture.store.current.pool.memory == 16 * 10**9
    assert fixture.store.state.overlay.keys() == ["pool.policy"]
    assert result.changed == [{"key": "pool.memory", "old": "8GB", "new": "50%"}]
    with pytest.raises(FileInvalid, match=r"the text:2:1: pool.max_models"):
        await fixture.store.replace("[pool]\nmax_models = 0\n", TERMS)
    assert fixture.path.read_bytes() == text.encode()


async def test_only_comments_are_a_generation_too(make: MakeStore) -> None:
    """The file is another one, and no setting has changed; the same text is nothing at all."""
    fixture = make(TEXT)
    result = await fixture.store.replace(TEXT + "# more\n", TERMS)
    assert (result.changed, result.is_rewritten, result.generation) == ([], True, 2)
    result = await fixture.store.replace(TEXT + "# more\n", TERMS)
    assert (result.is_rewritten, result.generation) == (False, 2)


async def test_a_file_that_is_applied_for_now_leaves_the_file_alone(make: MakeStore) -> None:
    """Its values lie over the file's, what it leaves out has its default, entries that it lacks are gone."""
    old = TEXT + 'max_models = 3\n[cloud.rules.r]\nmatch = "x"\nmode = "never"\n'
    fixture = make(old)
    await fixture.store.replace('[pool]\npolicy = "lfu"\n', Terms("test", persist=False))
    pool = fixture.store.current.pool
    assert (pool.policy, pool.max_models, pool.memory) == ("lfu", None, 24 * 10**9)
    assert not fixture.store.current.cloud.rules
    assert fixture.path.read_text() == old
    await fixture.store.replace(old, Terms("test", persist=False))
    assert not fixture.store.state.overlay


async def test_a_file_that_was_edited_since_it_was_read_is_a_conflict(make: MakeStore) -> None:
    """Who applies what was made of an older file is told, valid or not."""
    fixture = make(TEXT)
    fixture.path.write_text(TEXT + "max_models = 3\n")
    with pytest.raises(Conflict, match="was changed since it was read"):
        await fixture.store.replace(TEXT + "# mine\n", TERMS, base=sha256(TEXT))
    fixture.path.write_text(BROKEN)
    with pytest.raises(FileInvalid):
        await fixture.store.replace(TEXT + "# mine\n", TERMS, base=sha256(TEXT))
    assert fixture.path.read_text() == BROKEN


async def test_a_broken_file_is_replaced_by_who_has_read_it(make: MakeStore, tmp_path: Path) -> None:
    """Whoever edits the broken file itself may fix it; it is kept aside all the same."""
    fixture = make(BROKEN)
    assert fixture.store.has_booted_invalid
    with pytest.raises(FileInvalid):
        await fixture.store.replace(TEXT, TERMS)
    result = await fixture.store.replace(TEXT, TERMS, base=sha256(BROKEN))
    assert (fixture.store.has_booted_invalid, fixture.problem) == (False, "")
    assert fixture.path.read_text() == TEXT
    (kept,) = (tmp_path / "history").glob("rejected-*")
    assert kept.read_text() == BROKEN
    assert str(kept) in result.warnings[0]


async def test_rollback_is_a_commit_of_its_own(make: MakeStore) -> None:
    """The old file's bytes come back under a new number, and one can go forward again."""
    fixture = make(TEXT)
    await fixture.set("pool.memory", "8GB")
    await fixture.set("pool.max_models", 3)
    result = await fixture.store.rollback(1, TERMS)
    assert result.generation == 4
    assert fixture.path.read_text() == TEXT
    assert [line["key"] for line in result.changed] == ["pool.memory", "pool.max_models"]
    await fixture.store.rollback(3, TERMS)
    assert fixture.store.current.pool.max_models == 3
    with pytest.raises(NotFound, match=r"generation 77 .* 5 are, from 1 to 5"):
        await fixture.store.rollback(77, TERMS)


async def test_rollback_mends_a_file_that_was_bad_at_the_start(make: MakeStore, tmp_path: Path) -> None:
    """The error names the command; it works, serves again without a restart, and loses no word of the broken file."""
    await make(TEXT).set("pool.memory", "8GB")
    fixture = make(BROKEN)
    assert fixture.store.problem is not None
    assert "mlxctl config rollback 2" in str(fixture.store.problem.hint)
    await fixture.store.rollback(2, TERMS)
    assert not fixture.store.has_booted_invalid
    assert fixture.store.current.pool.memory == 8 * 10**9
    assert fixture.owner.calls[-1] == "apply"
    assert [path.read_text() for path in (tmp_path / "history").glob("rejected-*")] == [BROKEN]
    assert (await fixture.set("pool.max_models", 2)).generation == fixture.store.generation


async def test_a_broken_file_is_not_replaced_for_what_is_runtime_only(make: MakeStore) -> None:
    """What leaves the file alone leaves a broken one alone, too."""
    fixture = make(TEXT)
    fixture.path.write_text(BROKEN)
    terms = Terms("test", persist=False)
    with pytest.raises(FileInvalid):
        await fixture.store.rollback(1, terms)
    with pytest.raises(FileInvalid):
        await fixture.store.replace(TEXT, terms, base=sha256(BROKEN), over_invalid=True)
    assert fixture.path.read_text() == BROKEN


async def test_a_broken_file_that_cannot_be_kept_is_not_replaced(make: MakeStore) -> None:
    """On a full disk the rollback is refused, not the person's text lost."""
    faults = Faults()
    fixture = make(TEXT, calls=faults.calls)
    fixture.path.write_text(BROKEN)
    faults.fail_always(28, "write")
    with pytest.raises(CommitFailed, match="No space left"):
        await fixture.store.rollback(1, TERMS)
    assert fixture.path.read_text() == BROKEN


async def test_a_broken_file_that_is_mended_during_the_rollback_is_not_lost(make: MakeStore) -> None:
    """An edit that lands before the rename is taken up first, whatever the file was before."""
    path: list[Path] = []
    fixed = TEXT + "max_models = 9\n"

    def fsync(descriptor: int) -> None:
        if path:
            path.pop().write_text(fixed)
        os.fsync(descriptor)

    fixture = make(TEXT, calls=dataclasses.replace(SystemCalls(), fsync=fsync))
    fixture.path.write_text(BROKEN)
    path.append(fixture.path)
    await fixture.store.rollback(1, TERMS)
    texts = [fixture.store.disk.history.read(number) for number in (2, 3)]
    assert texts == [fixed.encode(), TEXT.encode()]


async def test_the_history_tells_where_each_generation_came_from(make: MakeStore) -> None:
    """Time, source and changed keys; what was runtime-only is listed and cannot be gone back to."""
    fixture = make(TEXT)
    await fixture.set("pool.memory", "8GB")
    await fixture.set("pool.max_models", 3, persist=False)
    fixture.path.write_text(TEXT)
    await fixture.store.reload(Terms("file"))
    await fixture.store.rollback(2, TERMS)
    records = fixture.store.disk.history.records()
    assert [(record.generation, record.source, record.changed, record.has_version) for record in records] == [
        (1, "file", (), True),
        (2, "test", ("pool.memory",), True),
        (3, "test", ("pool.max_models",), False),
        (4, "file", ("pool.memory",), True),
        (5, "rollback 2", ("pool.memory",), True),
    ]
    assert all(record.time_ms is not None for record in records)
    with pytest.raises(NotFound):
        await fixture.store.rollback(3, TERMS)


async def test_a_damaged_record_is_an_unknown_one(make: MakeStore, tmp_path: Path) -> None:
    """A record that a power cut has cut off costs nothing but what it said."""
    fixture = make(TEXT)
    (tmp_path / "history" / "1.json").write_text('{"time_ms": ')
    (record,) = fixture.store.disk.history.records()
    assert (record.source, record.time_ms, record.has_version) == (None, None, True)


async def test_runtime_only_generations_do_not_push_the_files_out(make: MakeStore, tmp_path: Path) -> None:
    """A script that turns a value to and fro leaves every version to go back to, and no endless heap of records."""
    fixture = make(TEXT)
    for number in range(210):
        await fixture.set("pool.max_models", number + 1, persist=False)
    await fixture.set("pool.memory", "8GB")
    assert (tmp_path / "history" / "1.toml").exists()
    assert len(list((tmp_path / "history").glob("*.json"))) == 200


async def test_if_gen_and_dry_run_hold_for_whole_files(make: MakeStore) -> None:
    """Apply, rollback and reload are asked for on the same terms as any change."""
    fixture = make(TEXT)
    with pytest.raises(Conflict):
        await fixture.store.replace("", Terms("test", if_gen=5))
    with pytest.raises(Conflict):
        await fixture.store.rollback(1, Terms("test", if_gen=5))
    with pytest.raises(Conflict):
        await fixture.store.reload(Terms("test", if_gen=5))
    dry = await fixture.store.replace("", Terms("test", dry_run=True))
    assert (dry.dry_run, dry.changed[0]["key"], dry.effects) == (True, "pool.memory", {"owner": {"memory": 24 * 10**9}})
    assert_untouched(fixture)
    fixture.path.write_text(TEXT.replace("60%", "50%"))
    dry = await fixture.store.reload(Terms("test", dry_run=True))
    assert dry.changed == [{"key": "pool.memory", "old": "60%", "new": "50%"}]
    assert fixture.store.generation == 1


async def test_the_history_is_its_owners_alone(make: MakeStore, tmp_path: Path) -> None:
    """Old files hold what the settings file held, and nobody else may read that."""
    fixture = make(TEXT)
    await fixture.set("pool.max_models", 2)
    fixture.path.write_text(BROKEN)
    await fixture.store.rollback(1, TERMS)
    history = tmp_path / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in history.iterdir()} == {0o600}
    assert len(list(history.iterdir())) == 8


async def test_rejected_files_are_kept_up_to_a_number(make: MakeStore, tmp_path: Path) -> None:
    """The newest ten are there; a folder does not grow forever."""
    fixture = make(TEXT)
    for number in range(12):
        fixture.path.write_text(f"{BROKEN}# {number}\n")
        await fixture.store.rollback(1, TERMS)
    kept = [path.read_text().splitlines()[-1] for path in (tmp_path / "history").glob("rejected-*")]
    assert sorted(kept) == sorted(f"# {number}" for number in range(2, 12))


def test_rejected_files_of_one_generation_stand_side_by_side(tmp_path: Path) -> None:
    """Each once, with a number from the second on."""
    history = History(tmp_path / "history")
    names = [history.keep_rejected(3, data).name for data in (b"a", b"b", b"a", b"b", b"c")]
    second = "rejected-3-2.toml"
    assert names == ["rejected-3.toml", second, "rejected-3.toml", second, "rejected-3-3.toml"]
    assert (tmp_path / "history" / second).read_bytes() == b"b"


def count_open_files() -> int:
    """Return how many files this process has open."""
    return len(list(Path("/dev/fd").iterdir()))


async def test_commits_leave_no_file_open(make: MakeStore) -> None:
    """A daemon lives for months."""
    fixture = make(TEXT)
    await fixture.set("pool.max_models", 1)
    before = count_open_files()
    for number in range(2, 6):
        await fixture.set("pool.max_models", number)
    assert count_open_files() == before
