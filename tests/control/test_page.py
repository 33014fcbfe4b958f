"""Pages: every entry comes once and in order, and no reply is too long, whatever the sizes."""

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.control import page
from mlxd.control.page import make_page, place_of_number
from mlxd.protocol.errors import InvalidRequest
from tests.support.control import Client, Plane


def ask(items: list[dict[str, Any]], **params: Any) -> dict[str, Any]:
    """Return one page of *items*, which have a number each."""
    return make_page(params, "items", items, lambda index: place_of_number(items[index]["n"]))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3000), max_size=30), st.integers(1, 10) | st.none())
def test_pages_put_together_are_the_list(sizes: list[int], limit: int | None) -> None:
    """With any limit, and where only the bound of bytes cuts."""
    items = [{"n": number, "text": "x" * size} for number, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "MAX_PAGE_BYTES", 4000)
        params: dict[str, Any] = {} if limit is None else {"limit": limit}
        seen, pages = [], 0
        while True:
            answer = ask(items, **params)
            seen += answer["items"]
            pages += 1
            assert len(msgpack.packb(answer)) < 8000
            assert limit is None or len(answer["items"]) <= limit
            if answer["next"] is None:
                break
            params["cursor"] = answer["next"]
    assert seen == items
    assert pages <= len(items) + 1


def test_what_goes_meanwhile_costs_no_entry() -> None:
    """A cursor outlives the entries before it, and the one that it names."""
    items = [{"n": number} for number in range(6)]
    cursor = ask(items, limit=2)["next"]
    del items[:4]
    assert ask(items, cursor=cursor)["items"] == [{"n": 4}, {"n": 5}]


@pytest.mark.parametrize("params", [{"limit": 0}, {"cursor": "x" * 2000}])
def test_what_is_no_page_is_refused(params: dict[str, Any]) -> None:
    """The field at fault is named."""
    with pytest.raises(InvalidRequest) as caught:
        ask([{"n": 1}], **params)
    assert [caught.value.param] == list(params)


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        ("model.list", "models"),
        ("settings.list", "settings"),
        ("cloud.rule.list", "rules"),
        ("cloud.provider.list", "providers"),
        ("op.list", "operations"),
        ("request.list", "requests"),
        ("queue.show", "queue"),
    ],
)
async def test_every_list_has_pages(plane: Plane, client: Client, operation: str, name: str) -> None:
    """Page by page a client gets what it gets at once."""
    for number in range(2):
        await client.ask("cloud.provider.add", id=f"p{number}", base_url="https://host/v1")
        await client.ask("cloud.rule.add", match=f"exact:m{number}", mode="never")
    plane.backend.hold_loads(hold=True)
    for model in ("a", "b"):
        await client.ask("model.load", model=model)
    with (
        plane.requests.track("r", endpoint="chat", model="a", route="local"),
        plane.requests.track("r", endpoint="chat", model="a", route="local"),
    ):
        whole = (await client.ask(operation))[name]
        first = await client.ask(operation, limit=1)
        seen = list(first[name])
        while first["next"] is not None:
            first = await client.ask(operation, limit=1, cursor=first["next"])
            assert len(first[name]) == 1
            seen += first[name]
    plane.backend.hold_loads(hold=False)
    ids = {"settings": "key", "operations": "op", "queue": "position"}
    assert [one[ids.get(name, "id")] for one in seen] == [one[ids.get(name, "id")] for one in whole]
    assert len(whole) >= 2 or operation == "queue.show"


async def test_requests_are_listed_shown_and_cancelled(plane: Plane, client: Client) -> None:
    """An operator finds a request by its id, with what it waits for, and ends it; its events tell."""
    await client.send({"t": "sub", "id": 9, "topic": "events", "topics": ["request"]})
    await client.receive()
    with plane.requests.track("r-1", endpoint="chat", model="a", route="local") as running:
        running.begin_answering()
        running.begin_answering()
        shown = await client.ask("request.show", request="r-1")
        assert [(one["id"], one["state"]) for one in shown["requests"]] == [("r-1", "answering")]
        assert shown["waits"] == []
    assert (await client.refused("request.show", request="r-1"))["code"] == "not_found"
    error = await client.refused("request.cancel", request="r-1")
    assert (error["exit"], error["hint"]) == (4, "mlxctl request list")
