"""Events reach everybody in order, or everybody who is too slow learns what was missed."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from mlxd.control.bus import Bus, Subscription
from mlxd.protocol.event import Event, Gap


async def take(subscription: Subscription, count: int) -> list[Event | Gap]:
    """Return the next items."""
    return [await subscription.next() for _ in range(count)]


async def test_subscribers_get_what_comes_after_them() -> None:
    """Each sees every event from its beginning on, with the same numbers, and none after its end."""
    bus = Bus()
    bus.publish("before", {})
    first = bus.subscribe()
    assert bus.seq == 1
    bus.publish("one", {"n": 1})
    second = bus.subscribe()
    bus.publish("two", {})
    assert await take(first, 2) == [Event(2, "one", {"n": 1}), Event(3, "two", {})]
    bus.unsubscribe(first)
    bus.publish("three", {})
    assert await take(second, 2) == [Event(3, "two", {}), Event(4, "three", {})]


async def test_a_subscriber_waits_for_the_next_event() -> None:
    """Nothing is polled: the event itself wakes the one who waits."""
    bus = Bus()
    subscription = bus.subscribe()
    waiting = asyncio.create_task(subscription.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    bus.publish("now", {})
    assert await waiting == Event(1, "now", {})


async def test_listeners_are_called_at_once() -> None:
    """A listener hears an event before `publish` returns."""
    bus = Bus()
    heard: list[Event] = []
    bus.listen(heard.append)
    bus.publish("now", {})
    assert heard == [Event(1, "now", {})]


async def test_a_slow_subscriber_is_told_what_it_missed() -> None:
    """When the queue is full the newest are dropped, and one gap stands for all of them, in its place."""
    bus = Bus(queue_length=2)
    subscription = bus.subscribe()
    for _ in range(5):
        bus.publish("e", {})
    assert await take(subscription, 2) == [Event(1, "e", {}), Event(2, "e", {})]
    bus.publish("e", {})
    assert await take(subscription, 2) == [Gap(3, 5), Event(6, "e", {})]


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4))
def test_every_number_is_either_seen_or_in_a_gap(steps: list[bool], length: int) -> None:
    """Whatever the order of publishing and reading: numbers come once, in order, and without a hole."""

    async def run() -> list[Event | Gap]:
        bus = Bus(queue_length=length)
        subscription = bus.subscribe()
        seen: list[Event | Gap] = []
        taken = 0
        for is_publish in steps:
            if is_publish:
                bus.publish("e", {})
            elif taken < bus.seq:
                item = await subscription.next()
                taken = item.last if isinstance(item, Gap) else item.seq
                seen.append(item)
        while taken < bus.seq:
            item = await subscription.next()
            taken = item.last if isinstance(item, Gap) else item.seq
            seen.append(item)
        return seen

    numbers: list[int] = []
    for item in asyncio.run(run()):
        numbers += range(item.first, item.last + 1) if isinstance(item, Gap) else [item.seq]
    assert numbers == list(range(1, sum(steps) + 1))
