"""The eviction policy: pure functions from a view of the pool to a plan. No clock, log, I/O, settings or state.

Memory is given back in this order: prompt caches, idle models by policy, then (for a demand that is overdue) younger
sequences, which pause, and busy models, which drain. Pinned models never give way. Preloaded ones do so for a lowered
limit only, after all others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

# (place among the answers of the request, turn of the request, number of the sequence): lower is older.
Age = tuple[int, int, int]
# Younger than every request: the preload list.
YOUNGEST: Age = (sys.maxsize, 0, 0)


class Rank(IntEnum):
    """What protects a model."""

    ORDINARY = 0
    PRELOADED = 1
    PINNED = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that is loaded, loads or leaves, as the policy sees it."""

    model_id: str
    held_bytes: int  # reserved now
    settled_bytes: int  # reserved once the pauses, ends, trims and unloads under way are done
    floor_bytes: int  # the least that it needs to stay
    trimmable_bytes: int  # what emptying its prompt cache would free
    pausable_bytes: int  # what pausing its sequences that are younger than the demand would free
    rank: Rank
    is_ready: bool  # what still loads, or leaves already, is no victim
    is_loading: bool
    is_leaving: bool
    has_requests: bool
    oldest_wait: Age | None  # of the requests that wait for a slot or KV in it
    released_s: float
    uses: float  # recent ones count for more
    base: str | None = None  # of an adapter: the model that it is on, and goes with


@dataclass(frozen=True, slots=True)
class View:
    """What a plan is made from."""

    limit_bytes: int
    max_models: int | None
    policy: str  # lru, lfu
    candidates: tuple[Candidate, ...]

    @property
    def held_bytes(self) -> int:
        """The sum of what is reserved."""
        return sum(candidate.held_bytes for candidate in self.candidates)

    @property
    def free_bytes(self) -> int:
        """What can be reserved now; negative when the pool is over its limit."""
        return self.limit_bytes - self.held_bytes

    def rank_in(self, candidate: Candidate) -> tuple[float, float, str]:
        """Return the place of a candidate among the victims: the first goes first."""
        if self.policy == "lfu":
            return (candidate.uses, candidate.released_s, candidate.model_id)
        return (candidate.released_s, candidate.uses, candidate.model_id)

    def victims(self, allowed: Callable[[Candidate], bool]) -> list[Candidate]:
        """Return the loaded models that are allowed to go, in the order in which they go."""
        found = [candidate for candidate in self.candidates if candidate.is_ready and allowed(candidate)]
        return sorted(found, key=self.rank_in)


@dataclass(frozen=True, slots=True)
class Demand:
    """Room that somebody wants."""

    target: str  # the model it is for: no victim
    age: Age
    bytes: int  # by how much the reservation would grow
    footprint_bytes: int  # all that the target would hold at the least
    models: int = 0  # 1 for a load
    claimed_bytes: int = 0  # promised to older demands
    claimed_models: int = 0
    is_overdue: bool = False  # it has waited for `pool.evict_patience`: requests younger than it give way
    base: str | None = None  # of an adapter: the model that it is on, no victim either and in its footprint
    is_adapter_load: bool = False  # it is no model more, and yet no load starts while there are too many


class Outcome(Enum):
    """What can be done for a demand."""

    FITS = "fits"  # now
    FREEING = "freeing"  # when what is under way, or what the plan begins, is done
    BLOCKED = "blocked"  # by busy models
    NEVER = "never"  # too big for what the limit leaves beside pinned and preloaded models


@dataclass(frozen=True, slots=True)
class Trim:
    """Free *bytes* of a prompt cache."""

    model_id: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to begin."""

    outcome: Outcome
    evict: tuple[str, ...] = ()  # idle
    drain: tuple[str, ...] = ()  # busy
    abort: tuple[str, ...] = ()  # loading
    trims: tuple[Trim, ...] = ()
    pause_bytes: int = 0  # still short after that: to be had by pausing the youngest sequences


def plan_room(view: View, demand: Demand) -> Plan:
    """Plan room for a load or for a sequence that starts: all that it takes, or nothing (nobody leaves in vain).

    What is overdue is promised its bytes as soon as it fits beside the least of all that stay: no younger demand takes
    them, so that it gets them when older sequences have ended, if not before by pausing younger ones. So a model drains
    only where its weights are in the way; one that only lacks memory for more sequences is not loaded twice for that.
    """
    if never_fits(view, demand):
        return Plan(Outcome.NEVER)
    if _fits_now(view, demand):
        return Plan(Outcome.FITS)
    # A draining model goes only when its paused sequences have had their memory: for them it stays.
    staying = [
        candidate for candidate in view.candidates if not candidate.is_leaving or candidate.model_id == demand.target
    ]
    settled_bytes = sum(candidate.settled_bytes for candidate in staying)
    choice = _Choice(
        staying,
        short_bytes=demand.bytes + demand.claimed_bytes + settled_bytes - view.limit_bytes,
        short_models=_short(view, _models(staying) + demand.claimed_models + demand.models),
    )
    choice.take(view.victims(lambda victim: _may_go(victim, demand) and _is_idle(victim, demand.age)))
    if choice.is_enough():
        choice.prune()
        return choice.plan(Outcome.FREEING)
    if not demand.is_overdue:
        return Plan(Outcome.BLOCKED)
    choice.may_pause = True
    if not choice.is_enough() and not choice.has_room_for_least(view.limit_bytes, demand):
        choice.take(view.victims(lambda victim: _may_go(victim, demand) and not _is_idle(victim, demand.age)))
        choice.prune()
    if choice.is_enough():
        return choice.plan(Outcome.FREEING)
    return Plan(Outcome.FREEING if choice.has_room_for_least(view.limit_bytes, demand) else Outcome.BLOCKED)


def plan_growth(view: View, target: str, age: Age, n_bytes: int) -> Plan:
    """Plan more KV for a running sequence: idle models go even when that is not enough; the rest is `pause_bytes`."""
    settled_bytes = sum(candidate.settled_bytes for candidate in view.candidates)
    choice = _Choice(
        [candidate for candidate in view.candidates if not candidate.is_leaving],
        short_bytes=n_bytes + settled_bytes - view.limit_bytes,
        short_models=0,
    )
    choice.take(
        view.victims(
            lambda victim: victim.rank is Rank.ORDINARY and victim.model_id != target and _is_idle(victim, age)
        )
    )
    choice.prune()
    return choice.plan(Outcome.FREEING)


def plan_limit(view: View) -> Plan:
    """Plan how to come within the limit and `max_models`.

    Caches and idle models go at once, also while others drain. Where even the least of all that stay is too much, loads
    are aborted, the youngest first, and then busy models drain; otherwise sequences pause.
    """
    staying = [candidate for candidate in view.candidates if not candidate.is_leaving]
    choice = _Choice(
        view.candidates,
        short_bytes=sum(candidate.settled_bytes for candidate in view.candidates) - view.limit_bytes,
        short_models=_short(view, _models(staying)),
    )
    choice.take(view.victims(lambda victim: victim.rank is Rank.ORDINARY and not victim.has_requests))
    choice.prune()
    loading = [victim for victim in view.candidates if victim.is_loading and not victim.is_leaving]
    loading.sort(key=lambda victim: YOUNGEST if victim.oldest_wait is None else victim.oldest_wait, reverse=True)
    busy = view.victims(lambda victim: victim.rank is Rank.ORDINARY and victim.has_requests)
    preloaded = view.victims(lambda victim: victim.rank is Rank.PRELOADED)
    victims = (
        *(victim for victim in loading if victim.rank is Rank.ORDINARY),
        *busy,
        *(victim for victim in loading if victim.rank is Rank.PRELOADED),
        *sorted(preloaded, key=lambda candidate: candidate.has_requests),
    )
    for victim in victims:
        floors_bytes = sum(candidate.floor_bytes for candidate in choice.rest if not candidate.is_leaving)
        if floors_bytes <= view.limit_bytes and choice.short_models <= _models(choice.taken):
            break
        choice.add(victim)
    plan = choice.plan(Outcome.FREEING)
    rest = [candidate for candidate in choice.rest if candidate.settled_bytes > 0]
    if sum(candidate.floor_bytes for candidate in rest) > view.limit_bytes:
        rest = [
            candidate for candidate in rest if not candidate.is_leaving
        ]  # what drains makes room, and no pause does
    left = {candidate.model_id: candidate.settled_bytes for candidate in rest}
    trimmed_bytes = sum(trim.bytes for trim in plan.trims if trim.model_id in left)
    return replace(plan, pause_bytes=max(0, sum(left.values()) - trimmed_bytes - view.limit_bytes))


def plan_relief(view: View, *, preloaded: bool = False) -> Plan:
    """Plan what to give back when memory is short although the sums are right: all idle ordinary models.

    Args:
        view: the pool.
        preloaded: idle preloaded models too, unless ordinary ones go or are going, which may be enough.
    """
    idle = [
        victim
        for victim in view.victims(lambda victim: victim.rank is not Rank.PINNED)
        if not victim.has_requests and victim.oldest_wait is None
    ]
    ordinary = [victim for victim in idle if victim.rank is Rank.ORDINARY]
    is_coming = any(candidate.is_leaving and not candidate.has_requests for candidate in view.candidates)
    chosen = idle if preloaded and not ordinary and not is_coming else ordinary
    return Plan(Outcome.FREEING, evict=tuple(victim.model_id for victim in chosen))


def protected(view: View, *without: str | None) -> list[Candidate]:
    """Return the pinned and preloaded models that stay, *without* those of these ids."""
    return [
        candidate
        for candidate in view.candidates
        if candidate.rank is not Rank.ORDINARY and not candidate.is_leaving and candidate.model_id not in without
    ]


def never_fits(view: View, demand: Demand) -> bool:
    """Whether the demand is too big for what pinned and preloaded models leave."""
    staying = protected(view, demand.target, demand.base)
    floors_bytes = sum(candidate.floor_bytes for candidate in staying)
    too_many = view.max_models is not None and _models(staying) + 1 > view.max_models
    return demand.footprint_bytes + floors_bytes > view.limit_bytes or (demand.models > 0 and too_many)


def _fits_now(view: View, demand: Demand) -> bool:
    is_load = demand.models > 0 or demand.is_adapter_load
    if is_load and _short(view, _models(view.candidates) + demand.claimed_models + demand.models) > 0:
        return False
    return demand.bytes <= view.free_bytes - demand.claimed_bytes


def _may_go(victim: Candidate, demand: Demand) -> bool:
    return victim.rank is Rank.ORDINARY and victim.model_id not in {demand.target, demand.base}


def _models(candidates: Iterable[Candidate]) -> int:
    """Return how many count against `max_models`: an adapter lives on its base and does not."""
    return sum(candidate.base is None for candidate in candidates)


def _is_idle(victim: Candidate, age: Age) -> bool:
    """Whether nothing that runs, and no request older than *age*, is in its way."""
    return not victim.has_requests and (victim.oldest_wait is None or victim.oldest_wait > age)


def _short(view: View, models: int) -> int:
    """Return how many models are too many."""
    return 0 if view.max_models is None else models - view.max_models


class _Choice:
    """Victims, taken one after another until enough is free."""

    def __init__(self, candidates: Iterable[Candidate], *, short_bytes: int, short_models: int) -> None:
        self.candidates = list(candidates)
        self.short_bytes = short_bytes
        self.short_models = short_models
        self.may_pause = False
        self.taken: list[Candidate] = []

    @property
    def rest(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates if candidate not in self.taken]

    @property
    def still_short_bytes(self) -> int:
        return self.short_bytes - sum(candidate.settled_bytes for candidate in self.taken)

    def is_enough(self) -> bool:
        """Whether the caches of those that stay, and the sequences that may pause, cover what is still short."""
        yielding_bytes = sum(candidate.trimmable_bytes for candidate in self.rest)
        if self.may_pause:
            yielding_bytes += sum(candidate.pausable_bytes for candidate in self.rest)
        return self.still_short_bytes <= yielding_bytes and self.short_models <= _models(self.taken)

    def has_room_for_least(self, limit_bytes: int, demand: Demand) -> bool:
        """Whether the demand fits beside the least of all others that stay."""
        least_bytes = sum(
            candidate.settled_bytes if candidate.model_id == demand.target else candidate.floor_bytes
            for candidate in self.rest
        )
        fits = least_bytes + demand.bytes + demand.claimed_bytes <= limit_bytes
        return fits and self.short_models <= _models(self.taken)

    def take(self, victims: Iterable[Candidate]) -> None:
        for victim in victims:
            if self.is_enough():
                return
            self.add(victim)

    def add(self, victim: Candidate) -> None:
        """Take a victim, and before it the adapters on it."""
        group = [candidate for candidate in self.candidates if candidate.base == victim.model_id]
        self.taken += [
            candidate for candidate in (*group, victim) if candidate not in self.taken and not candidate.is_leaving
        ]

    def prune(self) -> None:
        """Let those stay that turn out not to be needed, the most valuable first; no adapter without its base."""
        for victim in reversed(list(self.taken)) if self.is_enough() else ():
            if any(other.model_id == victim.base for other in self.taken):
                continue
            before = self.taken
            self.taken = [other for other in before if other is not victim]
            if not self.is_enough():
                self.taken = before

    def plan(self, outcome: Outcome) -> Plan:
        short_bytes = max(0, self.still_short_bytes)
        trims = []
        for candidate in sorted(self.rest, key=lambda candidate: candidate.released_s):
            freed_bytes = min(short_bytes, candidate.trimmable_bytes)
            if freed_bytes:
                trims.append(Trim(candidate.model_id, freed_bytes))
                short_bytes -= freed_bytes
        return Plan(
            outcome,
            evict=tuple(victim.model_id for victim in self.taken if not victim.has_requests and not victim.is_loading),
            drain=tuple(victim.model_id for victim in self.taken if victim.has_requests),
            abort=tuple(victim.model_id for victim in self.taken if victim.is_loading),
            trims=tuple(trims),
            pause_bytes=short_bytes,
        )
