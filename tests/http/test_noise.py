"""Noise rules: what they remove from prompts of this machine, what they leave alone, and who is told."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from mlxd.engine.base import ChatPrompt
from mlxd.protocol.errors import DoesNotFit
from mlxd.protocol.noise import RULE_NAMES, RULES
from mlxd.protocol.settings import Settings
from tests.support.claude_code import AGENT, HEAD, billing, body, left, text
from tests.support.control import until
from tests.support.http_server import Served, serving, settings_of
from tests.support.scripted_pool import ScriptedPool, end, say
from tests.support.upstream import KEY, upstream

MESSAGES, CHAT, RESPONSES = "/v1/messages", "/v1/chat/completions", "/v1/responses"
BILLING, LEFT = RULE_NAMES
LINE, NOTE = billing(more=" cch=eb6c6;"), left(14_999_436)
REMINDER = f"<system-reminder>\n{NOTE}\n</system-reminder>"
Body = dict[str, Any]


def asks(*messages: Body, system: Any = None) -> Body:
    """Return a body of Anthropic's with these messages after one of a user."""
    hi = {"role": "user", "content": "hi"}
    return {"model": "m", "max_tokens": 9, "messages": [hi, *messages]} | ({} if system is None else {"system": system})


def chat(*messages: tuple[str, Any]) -> Body:
    """Return a chat of these roles and contents."""
    return {"model": "m", "messages": [{"role": role, "content": content} for role, content in messages]}


def user(*blocks: Any) -> Body:
    """Return a user's message of blocks."""
    return {"role": "user", "content": list(blocks)}


def parts(*texts: str) -> list[Body]:
    """Return the parts of an item of Responses."""
    return [{"type": "input_text", "text": each} for each in texts]


async def ask(served: Served, path: str, asked: Body) -> tuple[tuple[Mapping[str, Any], ...], Mapping[str, int] | None]:
    """Return the messages that the model got, and what the row says was removed."""
    rows = len(served.rows)
    status, _, answer = await served.post(path, asked)
    assert status == 200, answer
    await until(lambda: len(served.rows) > rows)
    pool = served.context.pool
    assert isinstance(pool, ScriptedPool)
    prompt = pool.requests[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt.messages, served.rows[-1].noise_removed


TWO_NOTES = (15_000_000, 14_999_436)
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "ok"}
# path, body with noise, the same without, and how many pieces of which rule.
NOISY: dict[str, tuple[str, Body, Body, Mapping[str, int]]] = {
    "a block before the system prompt": (MESSAGES, body(LINE), body(), {BILLING: 1}),
    "another session": (MESSAGES, body(billing("84c")), body(), {BILLING: 1}),
    "a newer client": (MESSAGES, body(LINE, notes=TWO_NOTES), body(), {BILLING: 1, LEFT: 2}),
    "the first line of the system prompt": (
        MESSAGES,
        asks(system=f"{LINE}\r\n\n{HEAD.strip()}"),
        asks(system=HEAD.strip()),
        {BILLING: 1},
    ),
    "nothing else in the system prompt": (MESSAGES, asks(system=text(LINE)), asks(), {BILLING: 1}),
    "the last line of the system prompt": (
        MESSAGES,
        asks(system=text(LINE, AGENT, f"{HEAD}\n\n{NOTE}\n")),
        asks(system=text(AGENT, HEAD.rstrip())),
        {BILLING: 1, LEFT: 1},
    ),
    "a note in a block": (MESSAGES, asks({"role": "system", "content": text(NOTE)}), asks(), {LEFT: 1}),
    "a note after a hint": (
        MESSAGES,
        asks({"role": "system", "content": f"Say what you do.\n\n{NOTE}"}),
        asks({"role": "system", "content": "Say what you do."}),
        {LEFT: 1},
    ),
    "a note after the user's words": (
        MESSAGES,
        asks(user(*text("go on", NOTE))),
        asks(user(*text("go on"))),
        {LEFT: 1},
    ),
    "a note after a tool's result": (MESSAGES, asks(user(RESULT, *text(NOTE))), asks(user(RESULT)), {LEFT: 1}),
    "a note as a reminder": (MESSAGES, asks(user(RESULT, *text(REMINDER))), asks(user(RESULT)), {LEFT: 1}),
    "forwarded as a chat": (
        CHAT,
        chat(("system", f"{LINE}\n{HEAD}"), ("user", "hi"), ("system", NOTE)),
        chat(("system", HEAD.lstrip("\n")), ("user", "hi")),
        {BILLING: 1, LEFT: 1},
    ),
    "forwarded as a chat of parts": (
        CHAT,
        chat(("developer", text(LINE, HEAD)), ("user", text("hi", NOTE))),
        chat(("developer", HEAD), ("user", "hi")),
        {BILLING: 1, LEFT: 1},
    ),
    "forwarded as instructions": (
        RESPONSES,
        {"model": "m", "instructions": f"{LINE}\n{AGENT}", "input": "hi"},
        {"model": "m", "instructions": AGENT, "input": "hi"},
        {BILLING: 1},
    ),
    "forwarded as nothing but instructions": (
        RESPONSES,
        {"model": "m", "instructions": LINE, "input": "hi"},
        {"model": "m", "input": "hi"},
        {BILLING: 1},
    ),
    "forwarded as items": (
        RESPONSES,
        {
            "model": "m",
            "input": [
                {"role": "developer", "content": parts(LINE, AGENT)},
                {"role": "user", "content": "hi"},
                {"role": "developer", "content": NOTE},
            ],
        },
        {"model": "m", "input": [{"role": "developer", "content": AGENT}, {"role": "user", "content": "hi"}]},
        {BILLING: 1, LEFT: 1},
    ),
}


@pytest.mark.parametrize("name", NOISY)
async def test_noise_is_removed_and_counted(name: str) -> None:
    """The model gets what a client without the noise would have sent; the row says how much went, by which rules."""
    path, noisy, clean, expected = NOISY[name]
    async with serving(ScriptedPool(end())) as served:
        got, removed = await ask(served, path, noisy)
        assert (got, removed) == ((await ask(served, path, clean))[0], expected)
        assert served.rows[-1].noise_removed is None


QUOTED = f"What is this line?\n{LINE}\n{NOTE}\nIt stands in my log."
ALONE: dict[str, tuple[str, Body]] = {
    "a user who quotes both": (MESSAGES, asks(user(*text("look", QUOTED)))),
    "a user who sends nothing but a note": (MESSAGES, asks({"role": "user", "content": NOTE}, user(*text(NOTE)))),
    "a user who sends a billing line": (MESSAGES, asks({"role": "user", "content": LINE}, user(*text("look", LINE)))),
    "a user who sends a note in a chat": (CHAT, chat(("user", NOTE), ("user", text(NOTE)))),
    "an assistant who quotes both": (MESSAGES, asks({"role": "assistant", "content": text("so:", NOTE, LINE)})),
    "the result of a tool": (MESSAGES, asks(user({**RESULT, "content": NOTE}))),
    "a system prompt that quotes both": (MESSAGES, asks(system=QUOTED)),
    "a note that begins a system message": (MESSAGES, asks({"role": "system", "content": f"{NOTE}\nBe brief."})),
    "a note that ends a sentence": (MESSAGES, asks({"role": "system", "content": f"There are {NOTE}"})),
    "a note in other words": (MESSAGES, asks({"role": "system", "content": "<total_tokens>few left</total_tokens>"})),
    "a reminder with more in it": (MESSAGES, asks(user(*text("go on", REMINDER.replace("\n<", "\nBe brief. <", 1))))),
    "a billing line in the second block": (MESSAGES, asks(system=text(AGENT, LINE))),
    "a billing line in a later message": (CHAT, chat(("system", AGENT), ("user", "hi"), ("system", LINE))),
    "a billing line behind a blank one": (MESSAGES, asks(system=f"\n{LINE}\n{AGENT}")),
    "a billing line with a sentence": (MESSAGES, asks(system=f"{LINE} Explain it.\n{AGENT}")),
    "a billing line without values": (MESSAGES, asks(system=f"x-anthropic-billing-header: explain it\n{AGENT}")),
    "another header": (MESSAGES, asks(system=f"x-header: cc_version=2;\n{AGENT}")),
}


@pytest.mark.parametrize("name", ALONE)
async def test_what_only_looks_like_noise_is_left_alone(name: str) -> None:
    """The same words elsewhere, or other words in the same place, reach the model as they are."""
    path, asked = ALONE[name]
    async with serving(ScriptedPool(end()), document={"http": {"noise_rules_off": list(RULE_NAMES)}}) as served:
        expected, _ = await ask(served, path, asked)
        served.store.current = settings_of()
        assert await ask(served, path, asked) == (expected, None)


def off(*names: str) -> Settings:
    """Return settings with these rules off."""
    return settings_of({"http": {"noise_rules_off": list(names)}})


async def test_a_rule_is_off_from_the_next_request_on() -> None:
    """The others still work, and what the rule would have removed reaches the model."""
    async with serving(ScriptedPool(end())) as served:
        served.store.current = off(BILLING)
        got, removed = await ask(served, MESSAGES, body(LINE, notes=TWO_NOTES))
        assert (got, removed) == ((await ask(served, MESSAGES, body(LINE)))[0], {LEFT: 2})
        assert str(got[0]["content"]).startswith(LINE)
        served.store.current = off(*RULE_NAMES)
        got, removed = await ask(served, MESSAGES, body(LINE, notes=TWO_NOTES))
        assert (removed, [message["content"] for message in got].count(left(15_000_000))) == (None, 1)


async def test_a_conversation_that_is_kept_has_its_noise_removed_each_time() -> None:
    """What a client reads back is what it sent; a turn that goes on from it has a prompt without noise."""
    items = [{"role": "developer", "content": parts(LINE, AGENT)}, {"role": "user", "content": "hi"}]
    async with serving(ScriptedPool([*say("so"), *end()])) as served:
        _, _, answer = await served.post(RESPONSES, {"model": "m", "input": items})
        response_id = json.loads(answer)["id"]
        _, _, kept = await served.get(f"{RESPONSES}/{response_id}/input_items?order=asc")
        assert json.loads(kept)["data"][0]["content"][0]["text"] == LINE
        turn = {"model": "m", "input": "more", "previous_response_id": response_id}
        got, removed = await ask(served, RESPONSES, turn)
    assert (got[0], removed) == ({"role": "system", "content": AGENT}, {BILLING: 1})


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (MESSAGES, {"model": "m", "max_tokens": 9, "messages": [{"role": "system", "content": NOTE}]}),
        (CHAT, chat(("system", LINE), ("system", NOTE))),
        (RESPONSES, {"model": "m", "instructions": LINE, "input": []}),
    ],
)
async def test_a_request_of_nothing_but_noise_is_refused(path: str, asked: Body) -> None:
    """There is nothing to answer, and the error says so."""
    async with serving(ScriptedPool(end())) as served:
        status, _, answer = await served.post(path, asked)
    assert (status, b"nothing" in answer) == (400, True)


async def test_the_end_of_an_answer_is_no_beginning_of_one() -> None:
    """A note after an assistant's message does not make that message the beginning of the answer when it goes."""
    async with serving(pool := ScriptedPool(end())) as served:
        told = {"role": "assistant", "content": "so"}
        await ask(served, MESSAGES, asks(told, {"role": "system", "content": NOTE}))
        await ask(served, MESSAGES, asks(told))
    assert [prompt.continues for request in pool.requests if isinstance(prompt := request.prompt, ChatPrompt)] == [
        False,
        True,
    ]


@pytest.mark.parametrize("mode", ["always", "fallback"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", ["anthropic", "openai"])
async def test_a_cloud_is_given_all_of_it(kind: str, mode: str, stream: bool) -> None:
    """Also one of another protocol, and one that is asked after the local model failed; the row counts nothing."""
    noisy = asks({"role": "user", "content": "go on"}, system=text(LINE, f"{AGENT}\n\n{NOTE}")) | {"stream": stream}
    pool = ScriptedPool([DoesNotFit("too large")])
    async with upstream() as far:
        cloud = {
            "enabled": True,
            "providers": {"far": {"kind": kind, "base_url": far.url, "auth": {"env": "KEY"}}},
            "rules": {"r": {"match": "m", "mode": mode, "to": ["far/x"]}},
        }
        async with serving(pool, document={"cloud": cloud}, environ={"KEY": KEY}) as served:
            status, headers, _ = await served.post(MESSAGES, noisy)
            await until(lambda: bool(served.rows))
    (seen,) = far.seen
    assert (status, headers["x-mlxd-route"], len(pool.requests)) == (200, "cloud", int(mode == "fallback"))
    assert (json.dumps(LINE)[1:-1].encode() in seen.body, json.dumps(NOTE)[1:-1].encode() in seen.body) == (True, True)
    if kind == "anthropic":
        assert {**seen.json, "model": "m"} == noisy
    assert served.rows[-1].noise_removed is None


def test_rules_are_well_formed() -> None:
    """Names are distinct, patterns compile, and every repetition is bounded: a hostile text costs one look."""
    patterns = [re.compile(match.pattern).pattern for rule in RULES for match in rule.matches]
    assert len(set(RULE_NAMES)) == len(RULES)
    assert [pattern for pattern in patterns if re.search(r"[*+]|\{\d*,\}", pattern)] == []
