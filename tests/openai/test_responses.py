"""POST /v1/responses: its transcript, what ends it early, and what can be asked of it afterwards."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import aiohttp
import openai
import pytest
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import TypeAdapter

from mlxd.engine.base import Delta, FinishReason, Prefilling, TextKind
from mlxd.engine.tool import CallPiece
from mlxd.protocol.errors import ContextLengthExceeded, GenerationFailed, QueueTimeout
from tests.support.clock import FakeClock
from tests.support.http_server import Served, serving, settings_of
from tests.support.official_client import openai_client
from tests.support.scripted_pool import ScriptedPool, Step, end, say

PATH = "/v1/responses"
HELLO: dict[str, Any] = {"model": "m", "input": "hi"}
CALL = Delta(1, "f(1)", TextKind.TOOL, 3, calls=(CallPiece("f", '{"a":1}', is_last=True),))
ALL: list[Step] = [
    Prefilling(1, 1, 1),
    *say("h", "m", kind=TextKind.REASONING),
    Delta(1, "so", TextKind.CONTENT, 2),
    CALL,
    *end(),
]
GOLDEN = """\
created {"response":RESPONSE}
in_progress {"response":RESPONSE}
output_item.added {"output_index":0,"item":\
{"id":"ID1","type":"reasoning","status":"in_progress","summary":[],"content":[]}}
content_part.added {"item_id":"ID1","output_index":0,"content_index":0,"part":{"type":"reasoning_text","text":""}}
reasoning_text.delta {"item_id":"ID1","output_index":0,"content_index":0,"delta":"h"}
reasoning_text.delta {"item_id":"ID1","output_index":0,"content_index":0,"delta":"m"}
reasoning_text.done {"item_id":"ID1","output_index":0,"content_index":0,"text":"hm"}
content_part.done {"item_id":"ID1","output_index":0,"content_index":0,"part":{"type":"reasoning_text","text":"hm"}}
output_item.done {"output_index":0,"item":REASONING}
output_item.added {"output_index":1,"item":\
{"id":"ID2","type":"message","status":"in_progress","role":"assistant","content":[]}}
content_part.added {"item_id":"ID2","output_index":1,"content_index":0,"part":\
{"type":"output_text","text":"","annotations":[],"logprobs":[]}}
output_text.delta {"item_id":"ID2","output_index":1,"content_index":0,"delta":"so","logprobs":[]}
output_text.done {"item_id":"ID2","output_index":1,"content_index":0,"text":"so","logprobs":[]}
content_part.done {"item_id":"ID2","output_index":1,"content_index":0,"part":PART}
output_item.done {"output_index":1,"item":MESSAGE}
output_item.added {"output_index":2,"item":{"id":"ID3","type":"function_call","status":"in_progress",\
"call_id":"ID4","name":"f","arguments":""}}
function_call_arguments.delta {"item_id":"ID3","output_index":2,"delta":"{\\"a\\":1}"}
function_call_arguments.done {"item_id":"ID3","output_index":2,"name":"f","arguments":"{\\"a\\":1}"}
output_item.done {"output_index":2,"item":CALL}
completed {"response":DONE}"""
PARTS = {
    "RESPONSE": '{MEMBERS,"completed_at":null,"error":null,"incomplete_details":null,"usage":null,"output":[],'
    '"status":"in_progress"}',
    "DONE": '{MEMBERS,"completed_at":1700000000,"error":null,"incomplete_details":null,"usage":USAGE,'
    '"output":[REASONING,MESSAGE,CALL],"status":"completed"}',
    "MEMBERS": '"id":"ID0","object":"response","created_at":1700000000,"model":"m","instructions":null,'
    '"max_output_tokens":null,"metadata":{},"parallel_tool_calls":true,"previous_response_id":null,'
    '"reasoning":{"effort":null,"summary":null},"temperature":1.0,"text":{"format":{"type":"text"},'
    '"verbosity":"medium"},"tool_choice":"auto","tools":[],"top_logprobs":0,"top_p":1.0,"truncation":"disabled",'
    '"background":false,"service_tier":"default","store":true',
    "REASONING": '{"id":"ID1","type":"reasoning","status":"completed","summary":[],"content":'
    '[{"type":"reasoning_text","text":"hm"}]}',
    "MESSAGE": '{"id":"ID2","type":"message","status":"completed","role":"assistant","content":[PART]}',
    "PART": '{"type":"output_text","text":"so","annotations":[],"logprobs":[]}',
    "CALL": '{"id":"ID3","type":"function_call","status":"completed","call_id":"ID4","name":"f",'
    '"arguments":"{\\"a\\":1}"}',
    "USAGE": '{"input_tokens":7,"input_tokens_details":{"cached_tokens":3,"cache_write_tokens":0},'
    '"output_tokens":2,"output_tokens_details":{"reasoning_tokens":2},"total_tokens":9}',
}


def _golden() -> str:
    text = GOLDEN
    for name, part in PARTS.items():
        text = text.replace(f":{name}", f":{part}")
        text = re.sub(rf"(?<=[\[{{,]){name}(?=[\]}},])", part.replace("\\", "\\\\"), text)
    events = []
    for number, line in enumerate(text.splitlines()):
        kind, _, data = line.partition(" ")
        head = f'data: {{"type":"response.{kind}","sequence_number":{number},'
        events.append(f"event: response.{kind}\n{head}{data[1:]}\n\n")
    return "".join(events)


def _numbered(text: str) -> str:
    """Return *text* with its random ids numbered in the order of their appearance."""
    ids: dict[str, str] = {}
    return re.sub(r"[a-z]+_[0-9a-f]{32}", lambda found: ids.setdefault(found[0], f"ID{len(ids)}"), text)


def _events(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in body.decode().splitlines() if line.startswith("data")]


async def _delete(served: Served, path: str) -> tuple[int, Any]:
    async with served.http.delete(served.url + path) as response:
        return response.status, await response.json()


async def test_a_stream_is_exactly_this() -> None:
    """Reasoning, text and a call are items one after another; each is opened and closed; there is no [DONE]."""
    async with serving(ScriptedPool(ALL)) as served:
        status, headers, body = await served.post(PATH, HELLO | {"stream": True})
    assert status == 200
    assert (headers["x-mlxd-route"], headers["x-mlxd-model"]) == ("local", "m")
    assert _numbered(body.decode()) == _golden()


async def test_all_that_is_sent_is_of_the_official_types() -> None:
    """Every event, the response, and the list of its input, checked strictly; the client itself checks nothing."""
    asked = HELLO | {
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        "metadata": {"a": "b"},
    }
    async with serving(
        ScriptedPool(ALL, [*say("a"), *end(FinishReason.LENGTH)], [*say("a"), GenerationFailed("no")])
    ) as served:
        streams = [_events((await served.post(PATH, asked | {"stream": True}))[2]) for _ in range(3)]
        _, _, items = await served.get(f"{PATH}/{streams[0][-1]['response']['id']}/input_items")
    events: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for event in [event for stream in streams for event in stream]:
        assert events.validate_python(event).type == event["type"]
    TypeAdapter(Response).validate_python(streams[0][-1]["response"])
    TypeAdapter(ResponseItemList).validate_json(items)


async def test_a_stream_ends_with_the_whole_answer() -> None:
    """But for ids, the last event's response is the one that is given without a stream."""
    async with serving(ScriptedPool(ALL)) as served:
        _, _, streamed = await served.post(PATH, HELLO | {"stream": True})
        _, _, whole = await served.post(PATH, HELLO)
    last = json.dumps(_events(streamed)[-1]["response"])
    assert _numbered(json.dumps(json.loads(whole))) == _numbered(last)


async def test_an_answer_that_is_cut_off_is_incomplete() -> None:
    """The reason is OpenAI's, the item that was cut says it too, and the stream's last event is named so."""
    script = [Delta(1, "so", TextKind.CONTENT, 2), *end(FinishReason.LENGTH)]
    async with serving(ScriptedPool(script)) as served:
        _, _, streamed = await served.post(PATH, HELLO | {"stream": True, "max_output_tokens": 2})
    last = _events(streamed)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["status"] == last["response"]["output"][0]["status"] == "incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["completed_at"] is None


async def test_an_answer_without_a_word_is_complete() -> None:
    """A stream of nothing still begins and ends."""
    async with serving(ScriptedPool(end())) as served:
        _, _, streamed = await served.post(PATH, HELLO | {"stream": True})
    kinds = [event["type"] for event in _events(streamed)]
    assert kinds == ["response.created", "response.in_progress", "response.completed"]


async def test_an_error_in_a_stream_is_one_event_that_the_official_client_raises() -> None:
    """`response.failed` carries the envelope besides; the response is stored as failed, with what it had said."""
    script: list[Step] = [*say("a", "b"), GenerationFailed("the device is gone")]
    async with serving(ScriptedPool(script)) as served, openai_client(served) as client:
        _, _, body = await served.post(PATH, HELLO | {"stream": True})
        with pytest.raises(openai.APIError, match="the device is gone"):
            async for _ in await client.responses.create(model="m", input="hi", stream=True):
                pass
        events = _events(body)
        stored = json.loads((await served.get(f"{PATH}/{events[-1]['response']['id']}"))[2])
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.failed"
    assert stored == events[-1]["response"]
    assert stored["status"] == "failed"
    assert stored["error"] == {"code": "server_error", "message": "the device is gone"}
    assert stored["output"][0]["content"][0]["text"] == "ab"


async def test_an_error_before_the_prompt_is_admitted_has_a_status() -> None:
    """Nothing is sent before that, and an error is a plain one."""
    async with serving(ScriptedPool([GenerationFailed("no")])) as served:
        status, _, body = await served.post(PATH, HELLO | {"stream": True})
    assert (status, json.loads(body)["error"]["code"]) == (500, GenerationFailed.code)


async def test_the_engines_words_are_this_apis() -> None:
    """The engine knows a field by its name in chats."""
    pool = ScriptedPool(end())
    pool.on_lease = [ContextLengthExceeded("max_tokens is 9", param="max_tokens", hint="a lower max_tokens")]
    async with serving(pool) as served:
        status, _, body = await served.post(PATH, HELLO | {"max_output_tokens": 9})
    error = json.loads(body)["error"]
    assert (status, error["param"]) == (400, "max_output_tokens")
    assert error["message"] == "max_output_tokens is 9. Try: a lower max_output_tokens"


async def test_an_error_after_keep_alives_alone_is_an_error_event() -> None:
    """It has the shape of an event of OpenAI's, and the envelope on which its client raises."""
    clock = FakeClock()
    waiting, gate = asyncio.Event(), asyncio.Event()
    pool = ScriptedPool(end())
    pool.on_lease = [waiting.set, gate, QueueTimeout("waited 120 s")]
    async with serving(pool, clock=clock) as served:
        asking = asyncio.create_task(served.http.post(served.url + PATH, json=HELLO | {"stream": True}))
        await waiting.wait()
        clock.run_next()
        async with await asking as response:
            gate.set()
            body = await response.read()
    assert b"\nevent: error\n" in body
    (event,) = _events(body)
    assert (event["type"], event["code"], event["sequence_number"]) == ("error", "queue_timeout", 0)
    assert event["error"]["message"] == event["message"] == "waited 120 s"


async def _begun(response: aiohttp.ClientResponse) -> str:
    seen = b""
    while b"output_text.delta" not in seen:
        seen += await response.content.readany()
    response_id: str = _events(seen[: seen.index(b"\n\n")])[0]["response"]["id"]
    return response_id


@pytest.mark.parametrize("stores", [True, False])
async def test_a_running_response_is_cancelled(stores: bool) -> None:
    """The cancel ends the stream and returns the response as it ended, stored or not; the model is free."""
    pool = ScriptedPool([*say("a"), asyncio.Event()])
    async with serving(pool) as served:
        asked = HELLO | {"stream": True, "store": stores}
        async with served.http.post(served.url + PATH, json=asked) as response:
            response_id = await _begun(response)
            seen, _, running = await served.get(f"{PATH}/{response_id}")
            deleted, refusal = await _delete(served, f"{PATH}/{response_id}")
            status, _, cancelled = await served.post(f"{PATH}/{response_id}/cancel", {})
            last = _events(await response.read())[-1]
        again, _, words = await served.post(f"{PATH}/{response_id}/cancel", {})
        assert pool.active_leases == 0
    assert (status, json.loads(cancelled)["status"]) == (200, "cancelled")
    assert last["response"] == json.loads(cancelled)
    assert (last["type"], last["error"]["code"]) == ("response.failed", "cancelled")
    assert (deleted, refusal["error"]["code"]) == (409, "in_use")
    assert seen == (200 if stores else 404)
    assert not stores or json.loads(running)["status"] == "in_progress"
    assert again == (400 if stores else 404)
    assert not stores or "its status is 'cancelled'" in json.loads(words)["error"]["message"]


async def test_a_cancel_ends_no_other_request_of_the_same_name() -> None:
    """Clients choose request ids, and may choose one twice."""
    gate = asyncio.Event()
    same = {"x-request-id": "same"}
    async with serving(ScriptedPool([*say("a"), gate, *end()])) as served:
        url, asked = served.url + PATH, HELLO | {"stream": True}
        async with (
            served.http.post(url, json=asked, headers=same) as first,
            served.http.post(url, json=asked, headers=same) as second,
        ):
            await _begun(second)
            await served.post(f"{PATH}/{await _begun(first)}/cancel", {})
            gate.set()
            ends = [_events(await response.read())[-1]["response"]["status"] for response in (first, second)]
    assert ends == ["cancelled", "completed"]


async def test_a_client_that_goes_away_leaves_nothing() -> None:
    """Its response is neither running nor stored."""
    async with serving(ScriptedPool([*say("a"), asyncio.Event()])) as served:
        async with served.http.post(served.url + PATH, json=HELLO | {"stream": True}) as response:
            response_id = await _begun(response)
        await served.context.requests.wait_idle()
        status, _, _ = await served.get(f"{PATH}/{response_id}")
    assert status == 404


async def test_a_conversation_goes_on_from_a_response() -> None:
    """The model sees all turns before; instructions are of one turn only; a deleted turn ends it."""
    pool = ScriptedPool(ALL)
    async with serving(pool) as served, openai_client(served) as client:
        first = await client.responses.create(model="m", input="one", instructions="be brief")
        result: Any = {"type": "function_call_output", "call_id": first.output[2].to_dict()["call_id"], "output": "9"}
        second = await client.responses.create(model="m", input=[result], previous_response_id=first.id)
        await client.responses.create(model="m", input="three", previous_response_id=second.id, store=False)
        listed = await client.responses.input_items.list(second.id)
        await client.responses.delete(first.id)
        with pytest.raises(openai.BadRequestError, match="goes on from") as broken:
            await client.responses.create(model="m", input="four", previous_response_id=second.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
    prompts = [request.prompt.messages for request in pool.requests]  # type: ignore[union-attr]
    assert [message["role"] for message in prompts[0]] == ["system", "user"]
    assert [message["role"] for message in prompts[2]] == ["user", "assistant", "tool", "assistant", "user"]
    assert prompts[2][:3] == prompts[1]
    assert prompts[1][1] == {
        "role": "assistant",
        "content": "so",
        "reasoning_content": "hm",
        "tool_calls": [{"id": result["call_id"], "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
    }
    assert [item.type for item in listed.data] == ["function_call_output"]
    assert broken.value.code == "previous_response_not_found"


async def test_input_items_come_in_pages() -> None:
    """The newest first unless asked otherwise; `after` is an item's id; a bad page is refused."""
    items = [{"role": "user", "content": str(number)} for number in range(3)]
    async with serving(ScriptedPool(end())) as served, openai_client(served) as client:
        response = await client.responses.create(model="m", input=items)  # type: ignore[arg-type]
        everything = [item async for item in client.responses.input_items.list(response.id, limit=2)]
        path = f"{PATH}/{response.id}/input_items"
        first = json.loads((await served.get(f"{path}?order=asc&limit=2"))[2])
        rest = json.loads((await served.get(f"{path}?order=asc&after={first['last_id']}"))[2])
        refused = [(await served.get(f"{path}?{query}"))[0] for query in ("limit=0", "order=up", "after=x", "limit=x")]
    texts = [item.to_dict()["content"][0]["text"] for item in everything]  # type: ignore[index]
    assert texts == ["2", "1", "0"]
    assert [item["content"][0]["text"] for item in first["data"] + rest["data"]] == ["0", "1", "2"]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert refused == [400] * 4


@pytest.mark.parametrize("query", ["stream=true", "starting_after=3"])
async def test_a_stored_response_is_given_whole(query: str) -> None:
    """A replay of its events is refused by name, and so is what cannot be included."""
    async with serving(ScriptedPool(end())) as served:
        response = json.loads((await served.post(PATH, HELLO))[2])
        status, _, body = await served.get(f"{PATH}/{response['id']}?{query}")
    assert status == 400
    assert json.loads(body)["error"]["param"].startswith(query.partition("=")[0])


async def test_a_query_is_read_as_bodies_are() -> None:
    """Neutral values and lists in both notations are taken; what is not OpenAI's is named, or refused."""
    query = "stream=false&include[]=message.output_text.logprobs&include=reasoning.encrypted_content&cheese=1"
    async with serving(ScriptedPool(end())) as served:
        response = json.loads((await served.post(PATH, HELLO))[2])
        status, headers, body = await served.get(f"{PATH}/{response['id']}?{query}")
        served.store.current = settings_of({"http": {"unknown_fields": "reject"}})
        refused, _, _ = await served.get(f"{PATH}/{response['id']}?{query}")
    assert (status, headers["x-mlxd-ignored-fields"], json.loads(body)) == (200, "cheese", response)
    assert refused == 400


@pytest.mark.parametrize("document", [{"stored_responses": 0}, {"stored_responses_memory": "0B"}])
async def test_a_store_without_room_keeps_nothing(document: dict[str, Any]) -> None:
    """The answer is given, and is not there afterwards."""
    async with serving(ScriptedPool(end()), document={"http": document}) as served:
        response = json.loads((await served.post(PATH, HELLO))[2])
        status, _, body = await served.get(f"{PATH}/{response['id']}")
    assert response["store"] is False or "stored_responses" not in document
    assert (status, json.loads(body)["error"]["code"]) == (404, "not_found")


async def test_a_stored_item_is_referred_to() -> None:
    """`item_reference` stands for an item of any stored response; an unknown one is refused."""
    pool = ScriptedPool(ALL)
    async with serving(pool) as served:
        first = json.loads((await served.post(PATH, HELLO))[2])
        said = {"type": "item_reference", "id": first["output"][1]["id"]}
        status, _, _ = await served.post(PATH, HELLO | {"input": [said, {"role": "user", "content": "go on"}]})
        unknown, _, body = await served.post(PATH, HELLO | {"input": [said | {"id": "msg_x"}]})
    assert status == 200
    assert pool.requests[-1].prompt.messages[0] == {"role": "assistant", "content": "so"}  # type: ignore[union-attr]
    assert (unknown, json.loads(body)["error"]["param"]) == (400, "input[0]")
