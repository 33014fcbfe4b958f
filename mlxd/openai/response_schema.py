"""Bodies of /v1/responses and its count of tokens → `GenerationRequest`, or an error that names the field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import Meta

from mlxd.engine.base import ChatPrompt, GenerationRequest
from mlxd.engine.template_traits import EFFORTS
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.http.sampling import Sampling, TemplateKwargs, TokenLimit
from mlxd.http.schema import Habit, Object, Text, checked, omitted, read, read_both, refused
from mlxd.openai.response_history import parse_input
from mlxd.openai.response_item import Item, messages_of
from mlxd.openai.response_store import ResponseStore
from mlxd.openai.response_tool import parse_tools, shown_tools
from mlxd.openai.schema import parse_text_format
from mlxd.openai.tool_name import ToolNames
from mlxd.protocol.errors import InvalidRequest

_LOGPROBS = "message.output_text.logprobs"
_SEALED_THOUGHTS = "reasoning.encrypted_content"
# The others are of tools that do not run here: they change nothing.
_INCLUDABLE = (
    _LOGPROBS,
    _SEALED_THOUGHTS,
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
)


_Include = Annotated[list[str], Meta(description="words that OpenAI's API does not have are left out")]


class _Reasoning(msgspec.Struct, kw_only=True):
    context: Annotated[Any, omitted("auto")] = None
    effort: Annotated[str | None, Meta(description="each is the nearest that the model's template knows")] = None
    # They ask for a summary where there is one; here the reasoning itself is given.
    generate_summary: Annotated[Any, omitted("auto", "none")] = None
    mode: Annotated[Any, omitted("standard")] = None
    summary: Annotated[Any, omitted("auto", "none")] = None


class _TextOptions(msgspec.Struct, kw_only=True):
    format: Object | None = None
    verbosity: Annotated[Any, omitted("medium")] = None


class _StreamOptions(msgspec.Struct, kw_only=True):
    include_obfuscation: Annotated[Any, omitted(False)] = None


class _Conversation(msgspec.Struct, kw_only=True):
    """The fields that a prompt is made of."""

    model: Text
    chat_template_kwargs: TemplateKwargs = {}
    conversation: Annotated[Any, refused()] = None
    input: Annotated[Any, Meta(description="media become a note; items of tools that do not run here are left out")] = (
        None
    )
    instructions: str | None = None
    parallel_tool_calls: bool = True
    previous_response_id: Text | None = None
    reasoning: _Reasoning = msgspec.field(default_factory=_Reasoning)
    text: _TextOptions = msgspec.field(default_factory=_TextOptions)
    tool_choice: Any = None
    tools: Annotated[
        list[Any],
        Meta(description="custom tools and those of namespaces are functions; hosted ones are left out"),
    ] = []
    truncation: Annotated[Literal["auto", "disabled"], Meta(description="auto does not shorten what does not fit")] = (
        "disabled"
    )


class ResponseBody(_Conversation, kw_only=True):
    """A body of /v1/responses."""

    access_programs: Annotated[Any, omitted({"cyber": "standard"})] = None
    background: Annotated[Any, refused(False)] = None
    background_options: Annotated[Any, omitted()] = None
    client_metadata: Habit = None
    context_management: Annotated[Any, omitted([])] = None
    image: Annotated[Any, omitted({"context_compression": "auto"}, {"context_compression": "disabled"})] = None
    include: _Include = []
    max_output_tokens: TokenLimit = None
    max_tool_calls: Habit = None  # of tools that run on OpenAI's servers
    metadata: dict[str, str] = {}
    moderation: Annotated[Any, refused()] = None
    prompt: Annotated[Any, refused()] = None
    prompt_cache_key: Habit = None
    prompt_cache_options: Habit = None
    prompt_cache_retention: Habit = None
    safety_identifier: Habit = None
    service_tier: Habit = None
    store: bool = True
    stream: bool = False
    stream_options: Annotated[Object, Meta(description="read with stream; include_obfuscation is left out")] = {}
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] = 0
    user: Habit = None


class InputCountBody(_Conversation, kw_only=True):
    """A body of /v1/responses/input_tokens."""

    personality: Annotated[Any, omitted()] = None


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """A body that can be answered."""

    request: GenerationRequest
    stream: bool
    stores: bool  # whether the response is to be kept
    input_items: tuple[Item, ...]  # its own, without those of the responses before it
    previous_id: str | None
    repeated: Mapping[str, Any]  # the members of a response that repeat the body
    names: ToolNames  # of its tools
    seals_thoughts: bool  # whether reasoning is to be given in a form that any client sends back


def parse_response(
    given: Mapping[str, Any], store: ResponseStore, owner: str | None, noise: NoiseFilter, omissions: Omissions
) -> ParsedResponse:
    """Read the body of /v1/responses, with what *store* has of *owner*'s conversation before it.

    The prompt is without noise; the items that are kept and repeated are as they came.

    Raises:
        UnsupportedParameter: a documented field, item or tool that this server does not act upon.
        InvalidRequest: a value of the wrong type or out of its bounds, an omission that is refused, or a previous
            response that is not there.
    """
    body, sampling = read_both(ResponseBody, Sampling, _updated(given), omissions)
    if body.stream:
        read(_StreamOptions, body.stream_options, omissions, "stream_options")
    for place, word in enumerate(body.include):
        if word not in _INCLUDABLE:
            omissions.leave_out(f"include[{place}]")
    request, items, names = _request(body, omissions, store, owner, noise)
    has_logprobs = body.top_logprobs > 0 or _LOGPROBS in body.include
    request = replace(
        request,
        sampling=sampling.params(),
        max_tokens=body.max_output_tokens if (body.max_output_tokens or 0) > 0 else None,
        logprobs=body.top_logprobs if has_logprobs else None,
    )
    stores = body.store and store.is_open
    return ParsedResponse(
        request,
        body.stream,
        stores,
        items,
        body.previous_response_id,
        {**_repeated(body, request), "store": stores},
        names,
        _SEALED_THOUGHTS in body.include,
    )


def parse_input_count(
    given: Mapping[str, Any], store: ResponseStore, owner: str | None, noise: NoiseFilter, omissions: Omissions
) -> GenerationRequest:
    """Read the body of /v1/responses/input_tokens; raises as `parse_response`."""
    request, _, _ = _request(read(InputCountBody, _updated(given), omissions), omissions, store, owner, noise)
    return request


def _updated(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a body with what its items say of fields: the last effort and format."""
    for path, item in _items(given.get("input"), "configuration_update"):
        for name in ("reasoning", "text"):
            update = item.get(name)
            if update is not None and isinstance(given.get(name) or {}, dict):
                given = {**given, name: {**(given.get(name) or {}), **checked(Object, f"{path}.{name}", update)}}
    return given


def _added_tools(items: Any) -> Iterator[tuple[str, Any]]:
    """Yield the place and the definition of the tools that stand in items."""
    for path, item in _items(items, "additional_tools"):
        for place, tool in enumerate(checked(list, f"{path}.tools", item.get("tools"))):
            yield f"{path}.tools[{place}]", tool


def _items(given: Any, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for place, item in enumerate(given if isinstance(given, list) else ()):
        if isinstance(item, dict) and item.get("type") == kind:
            yield f"input[{place}]", item


def _request(
    body: _Conversation, omissions: Omissions, store: ResponseStore, owner: str | None, noise: NoiseFilter
) -> tuple[GenerationRequest, tuple[Item, ...], ToolNames]:
    """Return a request that makes nothing yet, the items of its own input, and the names of its tools."""
    previous_id, effort = body.previous_response_id, body.reasoning.effort
    if body.input is None and previous_id is None:
        raise InvalidRequest("input is required: a text, or a list of items, the oldest first", param="input")
    if effort is not None and effort not in EFFORTS:
        omissions.leave_out("reasoning.effort", "is no effort that is known here")
        effort = None
    answer = None if body.text.format is None else parse_text_format(body.text.format, omissions)
    rules, names = parse_tools(
        body.tools,
        body.tool_choice,
        _added_tools(body.input),
        omissions,
        parallel=body.parallel_tool_calls,
        answer=answer,
    )
    items = parse_input([] if body.input is None else body.input, omissions, store.finder(owner))
    before = [] if previous_id is None else store.conversation(owner, previous_id)
    messages = messages_of([*before, *items], body.instructions, noise, names)
    if not messages:
        raise InvalidRequest("input holds no items, and there is nothing else to answer", param="input")
    prompt = ChatPrompt(messages, body.chat_template_kwargs, rules.use, effort)
    constraint = answer if rules.constraint is None else rules.constraint
    return GenerationRequest(prompt, constraint=constraint), items, names


def _repeated(body: ResponseBody, request: GenerationRequest) -> dict[str, Any]:
    """Return what a response repeats of a body that has been checked."""
    repeated = {
        "instructions": body.instructions,
        "max_output_tokens": request.max_tokens,
        "metadata": body.metadata,
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": _shown_effort(request), "summary": None},
        "temperature": request.sampling.temperature,
        "text": {"format": body.text.format or {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": shown_tools(body.tools),
        "top_logprobs": body.top_logprobs,
        "top_p": request.sampling.top_p,
        "truncation": body.truncation,
        "background": False,
        "service_tier": "default",
    }
    try:
        orjson.dumps({"response": repeated})  # as the events have it
    except orjson.JSONEncodeError:  # it writes 254 levels and reads 1024
        raise InvalidRequest("a schema in the body is nested too deep to be repeated in the response") from None
    return repeated


def _shown_effort(request: GenerationRequest) -> str | None:
    return request.prompt.reasoning_effort if isinstance(request.prompt, ChatPrompt) else None
