"""Who gives way, as pure functions."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mlxd.pool.policy import (
    Candidate,
    Demand,
    Outcome,
    Plan,
    Rank,
    Trim,
    View,
    plan_growth,
    plan_limit,
    plan_room,
)


def candidate(model_id: str, size: int, **changed: Any) -> Candidate:
    """Return an idle, loaded, ordinary model of this size, with what is *changed*."""
    fields: dict[str, Any] = {
        "model_id": model_id,
        "held_bytes": size,
        "settled_bytes": size,
        "floor_bytes": size,
        "trimmable_bytes": 0,
        "pausable_bytes": 0,
        "rank": Rank.ORDINARY,
        "is_ready": True,
        "is_leaving": False,
        "has_requests": False,
        "oldest_wait": None,
        "released_s": 0.0,
        "uses": 0,
        "is_loading": False,
        **changed,
    }
    return Candidate(**fields)


def view(*candidates: Candidate, limit: int = 100, max_models: int | None = None, policy: str = "lru") -> View:
    """Return a view of these models."""
    return View(limit, max_models, policy, candidates)


def load(size: int, **changed: Any) -> Demand:
    """Return the demand of a load."""
    fields: dict[str, Any] = {
        "target": "new",
        "age": (0, 50, 0),
        "bytes": size,
        "footprint_bytes": size,
        "models": 1,
        **changed,
    }
    return Demand(**fields)


def test_a_load_that_fits_begins_nothing() -> None:
    """With enough free, nobody gives way."""
    assert plan_room(view(candidate("a", 40)), load(60)) == Plan(Outcome.FITS)


def test_lru_evicts_the_least_recently_released_first() -> None:
    """The victim under lru is the one whose last lease ended longest ago."""
    models = view(candidate("a", 40, released_s=2.0, uses=1), candidate("b", 40, released_s=1.0, uses=9))

    assert plan_room(models, load(50)).evict == ("b",)


def test_lfu_evicts_the_least_used_first() -> None:
    """The victim under lfu is the one with the fewest leases."""
    models = view(candidate("a", 40, released_s=2.0, uses=1), candidate("b", 40, released_s=1.0, uses=9), policy="lfu")

    assert plan_room(models, load(50)).evict == ("a",)


def test_victims_that_are_not_needed_stay() -> None:
    """A small old model stays when a bigger one has to go anyway and is enough."""
    models = view(candidate("old", 10, released_s=1.0), candidate("big", 60, released_s=2.0), limit=70)

    assert plan_room(models, load(60)).evict == ("big",)


def test_prompt_caches_go_before_models() -> None:
    """When prompt caches cover what is short, no model is evicted; the least recently used model's cache goes first."""
    models = view(
        candidate("a", 40, trimmable_bytes=15, released_s=2.0),
        candidate("b", 40, trimmable_bytes=10, released_s=1.0),
    )

    plan = plan_room(models, load(32))

    assert plan.evict == ()
    assert plan.trims == (Trim("b", 10), Trim("a", 2))


def test_no_cache_is_trimmed_in_vain() -> None:
    """When an eviction frees enough by itself, the caches of those that stay are kept."""
    models = view(candidate("a", 50, released_s=1.0), candidate("b", 40, trimmable_bytes=5, released_s=2.0))

    plan = plan_room(models, load(60))

    assert plan.evict == ("a",)
    assert plan.trims == ()


def test_nobody_leaves_in_vain() -> None:
    """When idle models are not enough, none of them is evicted: the demand waits."""
    models = view(candidate("idle", 20), candidate("busy", 70, has_requests=True))

    assert plan_room(models, load(60)) == Plan(Outcome.BLOCKED)


def test_a_patient_demand_drains_busy_models() -> None:
    """Once it may drain, a busy model goes, and idle ones go only if they are needed."""
    models = view(candidate("idle", 20), candidate("busy", 70, has_requests=True))

    plan = plan_room(models, load(60, is_overdue=True))

    assert plan.drain == ("busy",)
    assert plan.evict == ()


def test_an_overdue_demand_pauses_younger_sequences_rather_than_have_a_model_go() -> None:
    """A model whose weights leave room gives up its sequences, also when nothing else may move it."""
    for rank in Rank:
        models = view(
            candidate("idle", 5), candidate("busy", 70, floor_bytes=30, pausable_bytes=40, has_requests=True, rank=rank)
        )

        assert plan_room(models, load(60)) == Plan(Outcome.BLOCKED)
        assert plan_room(models, load(60, is_overdue=True)) == Plan(Outcome.FREEING, evict=("idle",), pause_bytes=30)


def test_an_overdue_demand_waits_for_older_sequences_with_its_bytes_promised() -> None:
    """When pausing is not enough and the weights leave room, nothing begins: older sequences end by themselves."""
    models = view(candidate("idle", 5), candidate("busy", 70, floor_bytes=30, pausable_bytes=20, has_requests=True))

    assert plan_room(models, load(60, is_overdue=True)) == Plan(Outcome.FREEING)
    assert plan_room(models, load(60, is_overdue=True, claimed_bytes=11)).drain == ("busy",)


def test_max_models_is_not_had_by_pausing() -> None:
    """When there is a model too many, one drains although its sequences could pause."""
    busy = candidate("busy", 70, floor_bytes=30, pausable_bytes=40, has_requests=True)

    assert plan_room(view(busy, max_models=1), load(60, is_overdue=True)) == Plan(Outcome.FREEING, drain=("busy",))


def test_a_model_with_older_requests_is_no_victim() -> None:
    """A model whose waiting request is older than the demand stays; for an older demand it goes."""
    models = view(candidate("a", 60, oldest_wait=(0, 40, 0)))

    assert plan_room(models, load(60)) == Plan(Outcome.BLOCKED)
    assert plan_room(models, load(60, age=(0, 30, 0))).evict == ("a",)


def test_what_leaves_already_counts_as_coming() -> None:
    """A second demand does not evict more while the first one's victim still unloads."""
    models = view(
        candidate("going", 60, is_leaving=True, is_ready=False, settled_bytes=0), candidate("stays", 30), limit=100
    )

    assert plan_room(models, load(60)) == Plan(Outcome.FREEING)


def test_older_claims_come_first() -> None:
    """What an older demand was promised is not free for a younger one."""
    models = view(candidate("a", 40))

    assert plan_room(models, load(60, claimed_bytes=10)).evict == ("a",)


def test_pinned_and_preloaded_models_never_go_for_a_load() -> None:
    """A demand that only their eviction could satisfy can never fit, even if it may drain."""
    for rank in (Rank.PINNED, Rank.PRELOADED):
        models = view(candidate("kept", 60, rank=rank), candidate("idle", 30))

        assert plan_room(models, load(50, is_overdue=True)) == Plan(Outcome.NEVER)


def test_never_fits_evicts_nobody() -> None:
    """A model above the limit is refused before anybody gives way."""
    assert plan_room(view(candidate("a", 40)), load(101)) == Plan(Outcome.NEVER)


def test_a_preloaded_model_that_leaves_protects_nothing() -> None:
    """What a lowered limit has sent away already does not make a load impossible; it is waited for."""
    going = candidate("kept", 60, rank=Rank.PRELOADED, is_leaving=True, is_ready=False)

    assert plan_room(view(going), load(50)) == Plan(Outcome.FREEING)


def test_a_model_is_not_in_its_own_way() -> None:
    """A sequence on a pinned model is judged by what the model would hold with it, counted once."""
    pinned = candidate("a", 60, rank=Rank.PINNED, has_requests=True)

    assert plan_room(view(pinned), load(30, target="a", models=0, footprint_bytes=90)) == Plan(Outcome.FITS)


def test_a_loading_model_is_no_victim() -> None:
    """What still loads is waited for."""
    models = view(candidate("loading", 60, is_ready=False))

    assert plan_room(models, load(60, is_overdue=True)) == Plan(Outcome.BLOCKED)


def test_max_models_evicts_one_for_one() -> None:
    """At the bound, a load takes the place of the first victim although there is memory."""
    models = view(candidate("a", 10, released_s=1.0), candidate("b", 10, released_s=2.0), max_models=2)

    assert plan_room(models, load(10)).evict == ("a",)


def test_max_models_taken_by_pins_is_never() -> None:
    """When pinned models take all places, no load can ever start."""
    models = view(candidate("a", 10, rank=Rank.PINNED), max_models=1)

    assert plan_room(models, load(10)).outcome is Outcome.NEVER


def test_max_models_does_not_matter_to_sequences() -> None:
    """A sequence on a loaded model starts although no further model may be loaded."""
    models = view(candidate("a", 10), max_models=1)

    assert plan_room(models, load(10, target="a", models=0)) == Plan(Outcome.FITS)


def test_a_lowered_limit_takes_idle_models_first() -> None:
    """Idle ordinary models go in the order of the policy, busy and preloaded ones stay if that is enough."""
    models = view(
        candidate("busy", 30, has_requests=True, released_s=0.0),
        candidate("preloaded", 30, rank=Rank.PRELOADED, released_s=0.5),
        candidate("idle", 30, released_s=1.0),
        limit=60,
    )

    plan = plan_limit(models)

    assert plan.evict == ("idle",)
    assert plan.drain == ()


def test_a_lowered_limit_drains_busy_models_before_preloaded_ones() -> None:
    """Preloaded models yield to a lowered limit only after all ordinary ones; pinned ones do not."""
    models = (
        candidate("preloaded", 30, rank=Rank.PRELOADED),
        candidate("busy", 30, has_requests=True),
        candidate("pinned", 30, rank=Rank.PINNED),
    )

    assert plan_limit(view(*models, limit=60)).drain == ("busy",)
    lower = plan_limit(view(*models, limit=40))
    assert (lower.evict, lower.drain) == (("preloaded",), ("busy",))
    lowest = plan_limit(view(*models, limit=10))
    assert (lowest.evict, lowest.drain) == (lower.evict, lower.drain)


def test_a_lowered_limit_pauses_rather_than_drains() -> None:
    """When the least of the busy models fits, they stay, and what is over is to be had by pausing."""
    models = view(
        candidate("a", 50, floor_bytes=20, has_requests=True),
        candidate("b", 40, floor_bytes=20, has_requests=True),
        limit=60,
    )

    plan = plan_limit(models)

    assert (plan.evict, plan.drain, plan.pause_bytes) == ((), (), 30)


def test_sequences_pause_beside_a_model_that_drains_if_that_makes_room() -> None:
    """A draining model may be long in going: what it holds counts, unless the least of all is too much anyway."""
    leaving = {"has_requests": True, "is_ready": False, "is_leaving": True}
    busy = candidate("busy", 50, floor_bytes=20, has_requests=True)

    assert plan_limit(view(busy, candidate("drains", 70, **leaving))).pause_bytes == 20
    assert plan_limit(view(busy, candidate("drains", 90, **leaving))).pause_bytes == 0
    assert plan_limit(view(busy, candidate("goes", 70, **{**leaving, "settled_bytes": 0}))).pause_bytes == 0


def test_a_lowered_max_models_evicts_and_drains() -> None:
    """The bound on models is enforced as the limit is."""
    models = view(
        candidate("a", 1), candidate("b", 1, has_requests=True), candidate("c", 1, has_requests=True), max_models=1
    )

    plan = plan_limit(models)

    assert (plan.evict, plan.drain) == (("a",), ("b",))


def test_growth_takes_idle_models_and_leaves_the_rest_to_pauses() -> None:
    """Idle models go even when that is not enough; what is short then is to be had by pausing."""
    models = view(candidate("busy", 80, has_requests=True), candidate("idle", 15), limit=100)

    plan = plan_growth(models, "busy", (0, 1, 1), 30)

    assert (plan.evict, plan.pause_bytes) == (("idle",), 10)


sizes = st.integers(0, 60)
candidates = st.builds(
    lambda model_id, size, shares, **changed: candidate(
        model_id, size, floor_bytes=size - size * shares[0] // 9, pausable_bytes=size * min(shares) // 9, **changed
    ),
    st.uuids().map(str),
    sizes,
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    rank=st.sampled_from(Rank),
    is_ready=st.booleans(),
    has_requests=st.booleans(),
    released_s=st.floats(0, 100),
    uses=st.integers(0, 9),
)


@given(
    models=st.lists(candidates, max_size=6),
    limit=st.integers(1, 200),
    max_models=st.none() | st.integers(1, 4),
    policy=st.sampled_from(("lru", "lfu")),
    size=sizes,
    is_overdue=st.booleans(),
)
def test_plans_spare_the_protected_and_suffice(
    models: list[Candidate], limit: int, max_models: int | None, policy: str, size: int, is_overdue: bool
) -> None:
    """No plan touches a protected or loading model; one that begins anything for a load makes room for it."""
    seen = view(*models, limit=limit, max_models=max_models, policy=policy)
    by_id = {model.model_id: model for model in models}

    room = plan_room(seen, load(size, is_overdue=is_overdue))

    gone = [by_id[model_id] for model_id in (*room.evict, *room.drain)]
    assert all(victim.rank is Rank.ORDINARY and victim.is_ready for victim in gone)
    assert not room.drain or is_overdue
    assert all(not by_id[model_id].has_requests for model_id in room.evict)
    if room.outcome in {Outcome.FITS, Outcome.FREEING}:
        left = [model for model in models if model not in gone]
        assert room.pause_bytes <= sum(model.pausable_bytes for model in left)
        is_promise = room == Plan(Outcome.FREEING)
        assert is_overdue or not (is_promise or room.pause_bytes)
        kept_bytes = sum(model.floor_bytes if is_promise else model.held_bytes for model in left) - room.pause_bytes
        movable = [model for model in models if is_promise and model.is_ready and model.rank is Rank.ORDINARY]
        assert kept_bytes - sum(model.floor_bytes for model in movable) + size <= limit
        assert max_models is None or len(models) - len(gone) + 1 <= max_models
    else:
        assert gone == []

    within = plan_limit(seen)
    gone = [by_id[model_id] for model_id in (*within.evict, *within.drain)]
    assert all(victim.rank is not Rank.PINNED and victim.is_ready for victim in gone)
    left = [model for model in models if model not in gone]
    if sum(model.floor_bytes for model in left) > limit:
        assert all(model.rank is Rank.PINNED or not model.is_ready for model in left), "somebody could still go"
