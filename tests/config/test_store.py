"""The commit pipeline: all or nothing, live and saved."""

import asyncio
import errno
import stat
import tomllib
from typing import Any

import pytest

from mlxd.config import Edit, Participant, Terms
from mlxd.control.dispatch import Mutations
from mlxd.protocol.errors import (
    CommitFailed,
    Conflict,
    InsufficientCapacity,
    InvalidValue,
    SettingsError,
    UnknownSetting,
)
from mlxd.protocol.settings import Settings
from tests.support.settings import TEXT, Binder, Faults, MakeStore, Owner, assert_untouched


async def test_a_commit_is_live_and_saved(make: MakeStore) -> None:
    """The snapshot, the file, the generation, the history and the event all say the same."""
    fixture = make(TEXT)
    result = await fixture.set("pool.memory", "24GB")
    assert fixture.store.current.pool.memory == 24 * 10**9
    assert fixture.path.read_text() == TEXT.replace("60%", "24GB")
    assert result.generation == fixture.store.generation == 2
    assert result.changed == [{"key": "pool.memory", "old": "60%", "new": "24GB"}]
    assert result.effects == {"owner": {"memory": 24 * 10**9}}
    assert result.warnings == []
    assert fixture.owner.calls == ["check force=False", "apply"]
    assert [event.kind for event in fixture.events] == ["config.changed"]
    assert fixture.events[0].data["source"] == "test"
    history = fixture.path.parent / "history"
    assert (history / "1.toml").read_text() == TEXT
    assert (history / "2.toml").read_text() == fixture.path.read_text()


async def test_a_restart_comes_up_with_the_same_settings(make: MakeStore) -> None:
    """Another store on the same folder has the same snapshot and the same generation."""
    first = make(TEXT)
    await first.set("pool.memory", "24GB")
    second = make()
    assert second.store.current == first.store.current
    assert second.store.generation == first.store.generation
    assert second.store.problem is None


async def test_the_first_commit_writes_the_commented_default_file(make: MakeStore) -> None:
    """Without a file the defaults hold, and the file that a commit makes explains every setting."""
    fixture = make()
    assert fixture.store.generation == 0
    assert fixture.store.current.pool.memory == 24 * 10**9
    await fixture.set("pool.memory", "50%")
    text = fixture.path.read_text()
    assert '# memory = "auto"\nmemory = "50%"\n' in text
    assert tomllib.loads(text)["pool"] == {"memory": "50%"}
    assert stat.S_IMODE(fixture.path.stat().st_mode) == 0o600
    assert fixture.store.generation == 1


@pytest.mark.parametrize(("key", "value"), [("pool.memory", "60%"), ("pool.keep_alive", "30m"), ("pool.preload", [])])
async def test_the_same_value_changes_and_writes_nothing(make: MakeStore, key: str, value: Any) -> None:
    """What stands in the file, or holds by default, is not written again; there is no new generation."""
    fixture = make(TEXT)
    before = fixture.path.stat()
    result = await fixture.set(key, value)
    assert result.changed == []
    assert result.generation == 1
    assert before.st_ino == fixture.path.stat().st_ino
    assert fixture.events == []
    assert "apply" not in fixture.owner.calls


async def test_unset_leads_back_to_the_default(make: MakeStore) -> None:
    """The line goes, the default holds, and the default is what the reply calls new."""
    fixture = make(TEXT)
    result = await fixture.set("pool.memory", None)
    assert fixture.path.read_text() == "# mine\n[pool]\n"
    assert result.changed == [{"key": "pool.memory", "old": "60%", "new": "auto"}]
    assert fixture.store.state.origin(("pool", "memory")) == "default"


async def test_edits_are_all_or_nothing(make: MakeStore) -> None:
    """One bad edit among good ones changes nothing."""
    fixture = make(TEXT)
    edits = [Edit(("pool", "memory"), "24GB"), Edit(("pool", "max_models"), 0)]
    with pytest.raises(InvalidValue, match="from 1 to 1000") as caught:
        await fixture.store.commit(edits, Terms("test"))
    assert caught.value.param == "pool.max_models"
    assert_untouched(fixture)


@pytest.mark.parametrize(
    ("key", "value", "error", "words"),
    [
        ("pool.memory", "-5GB", InvalidValue, "1MB"),
        ("pool.memory", "500%", InvalidValue, "from 1% to 100%"),
        ("pool.memory", "abc", InvalidValue, "from 1% to 100%"),
        ("pool.memory", {"a": 1}, InvalidValue, "pool.memory"),
        ("pool.memry", "1GB", UnknownSetting, "nearest is 'pool.memory'"),
        ("pool", None, UnknownSetting, "no setting 'pool'"),
        ("cloud.rules", None, UnknownSetting, "no setting 'cloud.rules'"),
        ("cloud.providers.p.auth", {"env": "KEY"}, InvalidValue, "base_url: it is missing"),
    ],
)
async def test_bad_edits_leave_the_file_byte_identical(
    make: MakeStore, key: str, value: Any, error: type[SettingsError], words: str
) -> None:
    """The message has the bound or the nearest key, and nothing was written."""
    fixture = make(TEXT)
    with pytest.raises(error) as caught:
        await fixture.set(key, value)
    assert words in caught.value.message
    assert_untouched(fixture)


async def test_a_participant_refuses_unless_forced(make: MakeStore) -> None:
    """A refusal changes nothing; force turns it into a warning."""
    fixture = make(TEXT)
    fixture.owner.refusal = InsufficientCapacity("below the pinned models")
    with pytest.raises(InsufficientCapacity):
        await fixture.set("pool.memory", "1GB")
    assert_untouched(fixture)
    result = await fixture.set("pool.memory", "1GB", force=True)
    assert result.warnings == ["forced"]
    assert fixture.store.current.pool.memory == 10**9


async def test_a_dry_run_plans_and_changes_nothing(make: MakeStore) -> None:
    """The reply has what would change and what the participants would do."""
    fixture = make(TEXT)
    result = await fixture.set("pool.memory", "1GB", dry_run=True)
    assert result.dry_run
    assert result.changed == [{"key": "pool.memory", "old": "60%", "new": "1GB"}]
    assert result.effects == {"owner": {"memory": 10**9}}
    assert_untouched(fixture)


async def test_if_gen_refuses_another_generation(make: MakeStore) -> None:
    """Who has looked at an older generation is told the present one."""
    fixture = make(TEXT)
    with pytest.raises(Conflict, match="at generation 1, not 7") as caught:
        await fixture.set("pool.memory", "1GB", if_gen=7)
    assert caught.value.data == {"gen": 1}
    assert_untouched(fixture)
    assert (await fixture.set("pool.memory", "1GB", if_gen=1)).generation == 2


async def test_commits_run_one_after_the_other(make: MakeStore) -> None:
    """Many at once end as if they had come in turn: each has its generation and none is lost."""
    fixture = make(TEXT)
    results = await asyncio.gather(*(fixture.set(f"models.m{number}.pin", True) for number in range(8)))
    assert sorted(result.generation for result in results) == list(range(2, 10))
    assert set(fixture.store.current.models) == {f"m{number}" for number in range(8)}
    assert tomllib.loads(fixture.path.read_text())["models"].keys() == fixture.store.current.models.keys()


async def test_prepared_work_is_abandoned_when_the_commit_fails(make: MakeStore) -> None:
    """A port that was bound for new settings is given back when they do not come."""
    faults = Faults()
    fixture = make(TEXT, calls=faults.calls)
    faults.fail_always(errno.EIO, "replace")
    first, second = Binder(), Binder()
    fixture.attach("http", Owner(), first)
    fixture.attach("more", Owner(), second)
    with pytest.raises(CommitFailed):
        await fixture.set("http.port", 7000)
    assert first.calls == second.calls == ["prepare", "abandon"]
    second.refusal = InvalidValue("the port is taken")
    with pytest.raises(InvalidValue, match="the port is taken"):
        await fixture.set("http.port", 7000)
    assert first.calls == ["prepare", "abandon"] * 2
    assert_untouched(fixture)


async def test_prepared_work_is_kept_when_the_commit_succeeds(make: MakeStore) -> None:
    """After a commit it is `apply` that uses what was prepared."""
    fixture = make(TEXT)
    binder = Binder()
    fixture.attach("http", Owner(), binder)
    await fixture.set("http.port", 7000)
    assert binder.calls == ["prepare"]


async def test_a_commit_survives_its_caller(make: MakeStore) -> None:
    """A client that goes away in the middle leaves no half-done change."""
    fixture = make(TEXT)
    binder, started, go_on = Binder(), asyncio.Event(), asyncio.Event()

    async def prepare(new: Settings) -> None:
        started.set()
        await go_on.wait()

    binder.prepare = prepare  # type: ignore[method-assign]
    fixture.attach("http", Owner(), binder)
    mutations = Mutations(fixture.store.turn)

    def change(key: str, value: Any) -> asyncio.Task[Any]:
        async def work() -> dict[str, Any]:
            edits = [Edit(("pool", key), value)]
            return {"gen": (await fixture.store.commit(edits, Terms("test"))).generation}

        return asyncio.create_task(mutations.run(work))

    task = change("memory", "1GB")
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    waiting, gone = change("max_models", 2), change("max_models", 5)
    await asyncio.sleep(0)
    gone.cancel()
    go_on.set()
    assert await waiting == {"gen": 3}
    assert tomllib.loads(fixture.path.read_text()) == {"pool": {"memory": "1GB", "max_models": 2}}


@pytest.mark.parametrize("who", ["first", "last", "preparer"])
async def test_several_edits_are_all_or_nothing_across_owners(make: MakeStore, who: str) -> None:
    """Whichever owner refuses, whichever edit it is about, no owner has followed any of them."""
    fixture = make(TEXT)
    last, binder = Owner(), Binder()
    fixture.attach("last", last, binder)
    refusal = InsufficientCapacity("no")
    if who == "preparer":
        binder.refusal = refusal
    else:
        {"first": fixture.owner, "last": last}[who].refusal = refusal
    edits = [
        Edit(("pool", "memory"), "24GB"),
        Edit(("http", "port"), 7000),
        Edit(("pool", "preload"), ["a"]),
        Edit(("models", "a", "pin"), value=True),
    ]
    for persist in (True, False):
        with pytest.raises(InsufficientCapacity):
            await fixture.store.commit(edits, Terms("test", persist=persist))
        assert_untouched(fixture)
        assert "apply" not in last.calls
        assert not fixture.store.state.overlay
    last.refusal = fixture.owner.refusal = binder.refusal = None
    result = await fixture.store.commit(edits, Terms("test"))
    assert [line["key"] for line in result.changed] == ["pool.memory", "http.port", "pool.preload", "models.a.pin"]
    assert (fixture.owner.calls[-1], last.calls[-1]) == ("apply", "apply")


async def test_an_owner_is_asked_when_a_group_of_its_own_changes(make: MakeStore) -> None:
    """Another group's change is no business of its, unless it still has to apply what came before."""
    fixture = make(TEXT)
    seen: list[str] = []

    def apply(new: Settings) -> None:
        seen.append(f"apply {new.http.port}")
        if new.http.port == 7000:
            raise ZeroDivisionError

    def check(new: Settings, *, force: bool) -> list[str]:
        seen.append(f"check {new.http.port}")
        return []

    fixture.store.participants.attach("http", Participant(["http"], check=check, apply=apply))
    await fixture.set("pool.max_models", 2)
    assert seen == []
    result = await fixture.set("http.port", 7000)
    assert "http has not applied" in result.warnings[0]
    await fixture.set("http.port", 7001)
    await fixture.set("pool.max_models", 3)
    assert seen == ["check 7000", "apply 7000", "check 7001", "apply 7001"]
    await fixture.set("http.port", 7000)
    await fixture.set("pool.max_models", 4)
    assert seen[-2:] == ["check 7000", "apply 7000"]
