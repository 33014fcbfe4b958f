"""Runtime-only values: over the file, seen, never in it, gone with the process."""

import tomllib
from typing import Any

import pytest

from mlxd.config import Edit, Revert, Terms
from mlxd.protocol.errors import Conflict, InsufficientCapacity, InvalidValue, NotFound, SettingsError
from mlxd.protocol.key import parse_path
from mlxd.protocol.settings import Settings
from tests.support.settings import TEXT, MakeStore, StoreFixture

RULES = """\
[cloud.providers.p]
base_url = "https://host/v1"
[cloud.rules.r]
match = "x"
to = ["p/x"]
"""


async def over(fixture: StoreFixture, key: str, value: Any, **more: Any) -> Any:
    """Set one runtime-only value."""
    return await fixture.set(key, value, persist=False, **more)


def origin(fixture: StoreFixture, key: str) -> str:
    """Return where a setting comes from."""
    return fixture.store.state.origin(parse_path(key))


async def test_an_overlay_is_live_and_not_in_the_file(make: MakeStore) -> None:
    """The owners follow it, the file is byte-identical, the generation and the event tell of it; a restart ends it."""
    fixture = make(TEXT)
    result = await over(fixture, "pool.memory", "8GB")
    assert result.changed == [{"key": "pool.memory", "old": "60%", "new": "8GB"}]
    assert (result.generation, result.is_runtime_only, result.is_rewritten) == (2, True, False)
    assert fixture.store.current.pool.memory == 8 * 10**9
    assert fixture.owner.calls[-1] == "apply"
    assert fixture.path.read_text() == TEXT
    assert (origin(fixture, "pool.memory"), origin(fixture, "pool.policy")) == ("overlay", "default")
    assert fixture.events[-1].data["runtime_only"] is True
    again = make()
    assert again.store.current.pool.memory == 192 * 10**8
    assert again.store.generation == 2  # no number is used twice


async def test_a_saved_set_clears_the_overlay_of_its_key(make: MakeStore) -> None:
    """It does so for its own key only, and also where the file says the same already."""
    fixture = make(TEXT)
    await over(fixture, "pool.memory", "8GB")
    await over(fixture, "pool.max_models", 3)
    result = await fixture.set("pool.memory", "60%")
    assert result.changed == [{"key": "pool.memory", "old": "8GB", "new": "60%"}]
    assert (result.generation, result.is_rewritten) == (4, False)
    assert fixture.store.state.overlay.keys() == ["pool.max_models"]
    await fixture.set("pool.max_models", None)
    assert fixture.store.current.pool.max_models is None
    assert not fixture.store.state.overlay
    assert fixture.path.read_text() == TEXT


async def test_what_the_file_says_already_is_no_overlay(make: MakeStore) -> None:
    """Setting what holds anyway changes nothing; setting back what the file says ends the overlay."""
    fixture = make(TEXT)
    assert (await over(fixture, "pool.memory", "60%")).changed == []
    assert (await over(fixture, "pool.policy", "lru")).changed == []
    await over(fixture, "pool.memory", "8GB")
    await over(fixture, "pool.memory", "60%")
    assert not fixture.store.state.overlay


async def test_an_overlay_value_never_gets_into_the_file_by_way_of_an_edit(make: MakeStore) -> None:
    """An element is added to the file's list, not to the list that is runtime-only."""
    fixture = make(TEXT + 'preload = ["a"]\n')
    await over(fixture, "pool.preload", ["x"])
    terms = Terms("test")
    await fixture.store.commit(lambda base: [Edit(("pool", "preload"), [*base.pool.preload, "b"])], terms)
    assert tomllib.loads(fixture.path.read_text())["pool"]["preload"] == ["a", "b"]
    assert list(fixture.store.current.pool.preload) == ["a", "b"]
    await fixture.store.commit(
        lambda base: [Edit(("pool", "preload"), [*base.pool.preload, "c"])], Terms("test", persist=False)
    )
    assert list(fixture.store.current.pool.preload) == ["a", "b", "c"]


async def test_a_revert_leads_back_to_the_file(make: MakeStore) -> None:
    """The runtime-only value goes, the file's holds again; without one nothing changes."""
    fixture = make(TEXT)
    await over(fixture, "pool.memory", "8GB")
    assert (await over(fixture, "pool.memory", Revert.TO_FILE)).changed[0]["new"] == "60%"
    assert (await over(fixture, "pool.memory", Revert.TO_FILE)).changed == []
    with pytest.raises(SettingsError, match="there is no setting"):
        await over(fixture, "pool.memry", Revert.TO_FILE)


async def test_an_entry_of_the_file_can_be_taken_away_and_given_back(make: MakeStore) -> None:
    """A rule of the file is gone at runtime, with all its settings, and back when the overlay ends."""
    fixture = make(RULES)
    await over(fixture, "cloud.rules.r", None)
    assert not fixture.store.current.cloud.rules
    assert origin(fixture, "cloud.rules.r.match") == "overlay"
    assert fixture.path.read_text() == RULES
    await over(fixture, "cloud.rules.r", Revert.TO_FILE)
    assert list(fixture.store.current.cloud.rules) == ["r"]
    await over(fixture, "pool.max_models", 3)
    await over(fixture, "pool.max_models", None)
    assert not fixture.store.state.overlay


async def test_what_is_only_runtime_is_not_found_in_the_file(make: MakeStore) -> None:
    """Removing it for good says what it is."""
    fixture = make(TEXT)
    edits = [Edit(("cloud", "rules", "new", "match"), "x"), Edit(("cloud", "rules", "new", "mode"), "never")]
    await fixture.store.commit(edits, Terms("test", persist=False))

    def remove(base: Settings) -> list[Edit]:
        if "new" not in base.cloud.rules:
            raise NotFound("there is no rule 'new'")
        return [Edit(("cloud", "rules", "new"), None)]

    with pytest.raises(NotFound) as caught:
        await fixture.store.commit(remove, Terms("test"))
    assert "runtime-only" in str(caught.value.hint)
    await fixture.store.commit(remove, Terms("test", persist=False))
    assert not fixture.store.state.overlay


async def test_an_edit_by_hand_goes_under_the_overlay(make: MakeStore) -> None:
    """Overlay over file over default: the edit is committed, what it says of the same key waits, and is told."""
    fixture = make(TEXT)
    await over(fixture, "pool.memory", "8GB")
    fixture.path.write_text(TEXT.replace("60%", "50%") + "max_models = 3\n")
    result = await fixture.store.reload(Terms("file"))
    assert fixture.store.current.pool.memory == 8 * 10**9
    assert fixture.store.current.pool.max_models == 3
    assert [line["key"] for line in result.changed] == ["pool.max_models"]
    assert any("hidden by a runtime-only value: pool.memory" in warning for warning in result.warnings)
    await over(fixture, "pool.memory", Revert.TO_FILE)
    assert fixture.store.current.pool.memory == 16 * 10**9


async def test_an_overlay_that_the_file_leaves_without_ground_gives_way(make: MakeStore) -> None:
    """A rule that a person removes takes its runtime-only settings along, with a warning; the rest stays."""
    fixture = make(RULES)
    await over(fixture, "cloud.rules.r.priority", 5)
    await over(fixture, "pool.memory", "8GB")
    fixture.path.write_text("")
    result = await fixture.store.reload(Terms("file"))
    assert not fixture.store.current.cloud.rules
    assert fixture.store.state.overlay.keys() == ["pool.memory"]
    assert any("no longer runtime-only" in line and "cloud.rules.r.priority" in line for line in result.warnings)


async def test_an_overlay_that_an_owner_no_longer_takes_does_not_spoil_an_edit(make: MakeStore) -> None:
    """The person's edit is valid by itself, so it is taken up, without the runtime-only value."""
    fixture = make(TEXT)
    await over(fixture, "pool.preload", ["gone"])

    def check(new: Settings, *, force: bool) -> list[str]:
        if "gone" in new.pool.preload:
            raise InvalidValue("there is no model 'gone'", param="pool.preload")
        return []

    fixture.owner.check = check  # type: ignore[method-assign]
    fixture.path.write_text(TEXT.replace("60%", "50%"))
    await fixture.store.reload(Terms("file"))
    assert (fixture.store.current.pool.memory, fixture.store.current.pool.preload) == (16 * 10**9, ())


def needs_max_models(settings: Settings) -> None:
    """Refuse two settings that do not go together."""
    if settings.pool.policy == "lfu" and settings.pool.max_models is None:
        raise InvalidValue("lfu needs max_models", param="pool.policy")


async def test_an_overlay_that_no_daemon_could_start_with_does_not_spoil_an_edit(make: MakeStore) -> None:
    """What the person took away was what the runtime-only value went with, so it gives way."""
    fixture = make(TEXT + "max_models = 3\n", validate=needs_max_models)
    await over(fixture, "pool.policy", "lfu")
    fixture.path.write_text(TEXT)
    await fixture.store.reload(Terms("file"))
    assert (fixture.store.current.pool.max_models, fixture.store.current.pool.policy) == (None, "lru")


async def test_an_overlay_is_checked_like_any_commit(make: MakeStore) -> None:
    """Refusals, dry runs, generations: nothing is different because nothing is written."""
    fixture = make(TEXT)
    fixture.owner.refusal = InsufficientCapacity("below the pinned models")
    with pytest.raises(InsufficientCapacity):
        await over(fixture, "pool.memory", "1GB")
    assert (await over(fixture, "pool.memory", "1GB", force=True)).warnings == ["forced"]
    fixture.owner.refusal = None
    with pytest.raises(Conflict):
        await over(fixture, "pool.memory", "2GB", if_gen=1)
    dry = await over(fixture, "pool.memory", "2GB", dry_run=True)
    assert (dry.dry_run, dry.is_runtime_only, fixture.store.current.pool.memory) == (True, True, 10**9)
    with pytest.raises(InvalidValue):
        await over(fixture, "pool.memory", "500%")


async def test_saved_settings_must_stand_without_the_overlay(make: MakeStore) -> None:
    """What would be no valid file at the next start is refused now."""
    fixture = make(TEXT, validate=needs_max_models)
    await over(fixture, "pool.max_models", 3)
    with pytest.raises(InvalidValue, match="lfu needs"):
        await fixture.set("pool.policy", "lfu")
    assert fixture.path.read_text() == TEXT


async def test_what_is_nowhere_is_not_said_to_be_runtime_only(make: MakeStore) -> None:
    """The advice to ask for a runtime-only change is given for what is runtime-only."""
    fixture = make(TEXT)
    await fixture.set("pool.max_models", 3, persist=False)

    def remove(current: Settings) -> list[Edit]:
        if current.pool.max_models != 3:
            raise NotFound("no such thing in the file")
        if is_nowhere:
            raise NotFound("no such thing at all")
        return []

    is_nowhere = False
    with pytest.raises(NotFound, match="in the file") as caught:
        await fixture.store.commit(remove, Terms("test"))
    assert caught.value.hint == "it is runtime-only: the same with --runtime-only"
    is_nowhere = True
    with pytest.raises(NotFound, match="at all") as caught:
        await fixture.store.commit(remove, Terms("test"))
    assert caught.value.hint is None
