"""Bodies of /v1/messages and its count of tokens → `GenerationRequest`, or an error that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import Meta

from mlxd.anthropic.block import BlockReader
from mlxd.anthropic.message import MessageReader
from mlxd.anthropic.tool import Toolbox
from mlxd.engine.base import ChatPrompt, GenerationRequest
from mlxd.engine.constraint import JsonConstraint
from mlxd.http.noise import NoiseFilter, require_messages
from mlxd.http.omissions import Omissions
from mlxd.http.sampling import MaxTokens, Sampling, Stops
from mlxd.http.schema import Filled, Habit, Object, Schema, Text, omitted, read, read_both, refused
from mlxd.protocol.settings import MOST_TOKENS

_Tokens = Annotated[int, Meta(ge=0, le=MOST_TOKENS)]


class _Thinking(msgspec.Struct, kw_only=True):
    type: Literal["enabled", "adaptive", "between_tools", "disabled"]


class _Adaptive(_Thinking, kw_only=True):
    display: Any = None
    block_binding: Habit = None  # nothing is bound to a conversation here


class _Enabled(_Adaptive, kw_only=True):
    budget_tokens: _Tokens | None = None


class _Format(msgspec.Struct, kw_only=True):
    type: Literal["json_schema"]
    schema: Schema


class _OutputConfig(msgspec.Struct, kw_only=True):
    effort: Annotated[Text | None, Meta(description="each is the nearest that the model's template knows")] = None
    format: _Format | None = None
    task_budget: Annotated[Any, omitted()] = None


class CountBody(msgspec.Struct, kw_only=True):
    """A body of /v1/messages/count_tokens."""

    model: Text
    messages: Filled
    system: Any = None
    tools: list[Any] = []
    tool_choice: Object | None = None
    thinking: Annotated[Object | None, Meta(description="a budget above max_tokens is reduced to it")] = None
    output_config: _OutputConfig = msgspec.field(default_factory=_OutputConfig)
    output_format: _Format | None = None  # the older name of output_config.format
    betas: Annotated[Any, omitted([])] = None
    billing_policy: Habit = None
    cache_control: Habit = None  # the prompt cache needs no marks
    container: Annotated[Any, omitted()] = None
    context_management: Annotated[Any, omitted({}, {"edits": []})] = None
    diagnostics: Habit = None
    fallback_credit_token: Habit = None
    fallbacks: Annotated[Any, omitted([])] = None
    inference_geo: Habit = None
    mcp_servers: Annotated[Any, omitted([])] = None
    metadata: Habit = None
    service_tier: Habit = None
    speed: Annotated[Any, omitted("standard")] = None
    thread: Annotated[Any, refused()] = None  # the rest of the conversation is with Anthropic
    user_profile_id: Habit = None
    workspace_id: Habit = None


class MessagesBody(CountBody, kw_only=True):
    """A body of /v1/messages."""

    max_tokens: Annotated[MaxTokens, Meta(description="-1 is unlimited")]
    stop_sequences: Stops = ()
    stream: bool = False
    compaction: Annotated[Any, refused()] = None  # it asks for a summary, and for no answer


@dataclass(frozen=True, slots=True)
class ParsedBody:
    """A body that can be answered."""

    request: GenerationRequest
    stream: bool
    hides_thoughts: bool = False  # thinking blocks come without text
    answers: bool = True  # False for max_tokens 0: the prompt is read into the cache, and no more


def parse_message_body(given: Mapping[str, Any], noise: NoiseFilter, omissions: Omissions) -> ParsedBody:
    """Read the body of /v1/messages, without the noise in it.

    Raises:
        UnsupportedParameter: a documented field, block or tool that this server does not act upon.
        InvalidRequest: a value of the wrong type or out of its bounds, or an omission that is refused.
    """
    body, sampling = read_both(MessagesBody, Sampling, given, omissions)
    most = MOST_TOKENS if body.max_tokens == -1 else body.max_tokens
    request = _request(body, most, omissions, noise)
    request = replace(request, sampling=sampling.params(), max_tokens=max(most, 1), stop=body.stop_sequences)
    hides_thoughts = (body.thinking or {}).get("display") == "omitted"
    return ParsedBody(request, body.stream, hides_thoughts, answers=most > 0)


def parse_count_body(given: Mapping[str, Any], noise: NoiseFilter, omissions: Omissions) -> ParsedBody:
    """Read the body of /v1/messages/count_tokens; raises as `parse_message_body`."""
    return ParsedBody(_request(read(CountBody, given, omissions), MOST_TOKENS, omissions, noise), stream=False)


def _request(body: CountBody, max_tokens: int, omissions: Omissions, noise: NoiseFilter) -> GenerationRequest:
    answer = None
    if body.output_config.format is not None:
        answer = JsonConstraint(_written(body.output_config.format), "output_config.format")
    elif body.output_format is not None:
        answer = JsonConstraint(_written(body.output_format), "output_format")
    tools = Toolbox(body.tools, omissions)
    reader = MessageReader(BlockReader(omissions, tools), omissions, noise)
    messages = (*reader.system(body.system), *reader.messages(body.messages))
    require_messages(messages)
    rules = tools.rules(body.tool_choice, answer)
    thinks, budget_tokens = _thinking(body, max_tokens, omissions)
    continues = body.messages[-1]["role"] == messages[-1]["role"] == "assistant"
    prompt = ChatPrompt(messages, {}, rules.use, body.output_config.effort, continues, thinks)
    constraint = answer if rules.constraint is None else rules.constraint
    return GenerationRequest(prompt, constraint=constraint, thinking_budget=budget_tokens)


def _written(asked: _Format) -> str:
    return orjson.dumps(asked.schema).decode()


def _thinking(body: CountBody, max_tokens: int, omissions: Omissions) -> tuple[bool | None, int | None]:
    """Return whether the model may think, and the budget. One that cannot think need not: it is a permission."""
    if body.thinking is None:
        return None, None
    kind = body.thinking.get("type")
    shape = {"enabled": _Enabled, "adaptive": _Adaptive}.get(kind, _Thinking) if isinstance(kind, str) else _Thinking
    thinking = read(shape, body.thinking, omissions, "thinking")
    if isinstance(thinking, _Adaptive) and thinking.display not in (None, "summarized", "omitted"):
        omissions.leave_out("thinking.display")
    budget_tokens = thinking.budget_tokens if isinstance(thinking, _Enabled) else None
    # The least of all: thoughts about what tools have said, and none before that.
    is_idle = thinking.type == "between_tools" and not _ends_with_results(body.messages)
    is_off = thinking.type == "disabled" or budget_tokens == 0 or is_idle
    if is_off or budget_tokens is None:
        return not is_off, None
    # As with max_tokens, a bound that is too large is reduced.
    return True, min(budget_tokens, max(max_tokens - 1, 1))


def _ends_with_results(messages: list[Any]) -> bool:
    """Tell whether the last turn of the user brings what tools have said."""
    turns = [message for message in messages if message["role"] != "system"]
    content = turns[-1].get("content") if turns else None
    return isinstance(content, list) and any(block["type"] == "tool_result" for block in content)
