"""Body of /v1/responses → `GenerationRequest`, or an error that names the field. THE table of what each field does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from mlxd.engine.base import ChatPrompt, GenerationRequest
from mlxd.engine.constraint import JsonConstraint
from mlxd.engine.template_traits import EFFORTS
from mlxd.http import field
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.http.sampling import SAMPLING, sampling_params
from mlxd.http.table import Habit, Omitted, Refused, Table, Works, read
from mlxd.openai.response_format import parse_schema
from mlxd.openai.response_history import parse_input
from mlxd.openai.response_item import Item
from mlxd.openai.response_prompt import messages_of
from mlxd.openai.response_store import ResponseStore
from mlxd.openai.response_tool import parse_tools, shown_tools
from mlxd.openai.schema import UP_TO_THE_CONTEXT
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


@field.described({"type": "array", "items": {"type": "string"}})
def includes(name: str, value: Any) -> tuple[str, ...]:
    """Accept a list of words."""
    return tuple(field.string(f"{name}[{place}]", item) for place, item in enumerate(field.listing(name, value)))


@field.described({"type": "object", "additionalProperties": {"type": "string"}})
def metadata(name: str, value: Any) -> dict[str, str]:
    """Accept an object of texts."""
    for key, item in field.mapping(name, value).items():
        if not isinstance(item, str):
            raise field.wrong(f"{name}.{key[:60]}", item, "a text")
    return dict(value)


RESPONSE: Table = {
    **SAMPLING,
    "access_programs": Omitted(({"cyber": "standard"},)),
    "background": Refused((False,)),
    "background_options": Omitted(),
    "chat_template_kwargs": Works(field.template_kwargs),
    "client_metadata": Habit(),
    "context_management": Omitted(([],)),
    "conversation": Refused(),
    "image": Omitted(({"context_compression": "auto"}, {"context_compression": "disabled"})),
    "include": Works(includes, "words that OpenAI's API does not have are left out"),
    "input": Works(field.anything, "media become a note; items of tools that do not run here are left out"),
    "instructions": Works(field.string),
    "max_output_tokens": Works(UP_TO_THE_CONTEXT, "-1 and 0 are no bound"),
    "max_tool_calls": Habit(),  # of tools that run on OpenAI's servers
    "metadata": Works(metadata),
    "model": Works(field.text),
    "moderation": Refused(),
    "parallel_tool_calls": Works(field.boolean),
    "previous_response_id": Works(field.text),
    "prompt": Refused(),
    "prompt_cache_key": Habit(),
    "prompt_cache_options": Habit(),
    "prompt_cache_retention": Habit(),
    "reasoning": Works(field.mapping),
    "safety_identifier": Habit(),
    "service_tier": Habit(),
    "store": Works(field.boolean),
    "stream": Works(field.boolean),
    "stream_options": Works(field.mapping),
    "text": Works(field.mapping),
    "tool_choice": Works(field.anything),
    "tools": Works(field.listing, "custom tools and those of namespaces are functions; hosted ones are left out"),
    "top_logprobs": Works(field.integer(0, 20)),
    "truncation": Works(field.word("auto", "disabled"), "auto does not shorten what does not fit"),
    "user": Habit(),
}
_COUNTED = (
    *("conversation", "input", "instructions", "model", "parallel_tool_calls", "previous_response_id"),
    *("reasoning", "text", "tool_choice", "tools", "truncation", "chat_template_kwargs"),
)
INPUT_COUNT: Table = {**{name: RESPONSE[name] for name in _COUNTED}, "personality": Omitted()}
STREAM_OPTIONS: Table = {"include_obfuscation": Omitted((False,))}
REASONING: Table = {
    "context": Omitted(("auto",)),
    "effort": Works(field.string, "each is the nearest that the model's template knows"),
    # They ask for a summary where there is one; here the reasoning itself is given.
    "generate_summary": Omitted(("auto", "none")),
    "mode": Omitted(("standard",)),
    "summary": Omitted(("auto", "none")),
}
TEXT: Table = {"format": Works(field.mapping), "verbosity": Omitted(("medium",))}
_FORMAT_KNOWN = {
    "text": frozenset({"type"}),
    "json_object": frozenset({"type"}),
    "json_schema": frozenset({"type", "name", "description", "schema", "strict"}),
}


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
    body: Mapping[str, Any], store: ResponseStore, owner: str | None, noise: NoiseFilter, omitted: Omissions
) -> ParsedResponse:
    """Read the body of /v1/responses, with what *store* has of *owner*'s conversation before it.

    The prompt is without noise; the items that are kept and repeated are as they came.

    Raises:
        UnsupportedParameter: a documented field, item or tool that this server does not act upon.
        InvalidRequest: a value of the wrong type or out of its bounds, an omission that is refused, or a previous
            response that is not there.
    """
    values = read(RESPONSE, body, omitted)
    stream = values.get("stream", False)
    if stream and "stream_options" in values:
        read(STREAM_OPTIONS, values["stream_options"], omitted, "stream_options")
    for place, word in enumerate(values.get("include", ())):
        if word not in _INCLUDABLE:
            omitted.leave_out(f"include[{place}]")
    request, items, names = _request(values, omitted, store, owner, noise)
    stores = values.get("store", True) and store.is_open
    return ParsedResponse(
        request,
        stream,
        stores,
        items,
        values.get("previous_response_id"),
        {**_repeated(values, request), "store": stores},
        names,
        _SEALED_THOUGHTS in values.get("include", ()),
    )


def parse_input_count(
    body: Mapping[str, Any], store: ResponseStore, owner: str | None, noise: NoiseFilter, omitted: Omissions
) -> GenerationRequest:
    """Read the body of /v1/responses/input_tokens; raises as `parse_response`."""
    request, _, _ = _request(read(INPUT_COUNT, body, omitted), omitted, store, owner, noise)
    return request


def _request(
    values: dict[str, Any], omitted: Omissions, store: ResponseStore, owner: str | None, noise: NoiseFilter
) -> tuple[GenerationRequest, tuple[Item, ...], ToolNames]:
    """Return the request, the items of its own input, and the names of its tools."""
    previous_id = values.get("previous_response_id")
    if "input" not in values and previous_id is None:
        raise InvalidRequest("input is required: a text, or a list of items, the oldest first", param="input")
    more = _apply_items(values)
    effort = read(REASONING, values.get("reasoning", {}), omitted, "reasoning").get("effort")
    if effort is not None and effort not in EFFORTS:
        omitted.leave_out("reasoning.effort", "is no effort that is known here")
        effort = None
    answer = _answer_format(values, omitted)
    rules, names = parse_tools(values, more, omitted, answer)
    items = parse_input(values.get("input", []), omitted, store.finder(owner))
    before = [] if previous_id is None else store.conversation(owner, previous_id)
    messages = messages_of([*before, *items], values.get("instructions"), noise, names)
    if not messages:
        raise InvalidRequest("input holds no items, and there is nothing else to answer", param="input")
    request = GenerationRequest(
        ChatPrompt(messages, values.get("chat_template_kwargs", {}), rules.use, effort),
        sampling_params(values),
        values.get("max_output_tokens"),
        logprobs=_logprobs(values),
        constraint=answer if rules.constraint is None else rules.constraint,
    )
    return request, items, names


def _apply_items(values: dict[str, Any]) -> list[tuple[str, Any]]:
    """Apply the items that stand for fields of the body: the last effort and format; return the tools that they add."""
    tools = []
    items = values.get("input")
    for place, item in enumerate(items if isinstance(items, list) else ()):
        kind = item.get("type") if isinstance(item, dict) else None
        path = f"input[{place}]"
        if kind == "additional_tools":
            given = field.listing(f"{path}.tools", item.get("tools"))
            tools += [(f"{path}.tools[{number}]", tool) for number, tool in enumerate(given)]
        elif kind == "configuration_update":
            for name in ("reasoning", "text"):
                if item.get(name) is not None:
                    update = field.mapping(f"{path}.{name}", item[name])
                    values[name] = {**values.get(name, {}), **update}
    return tools


def _answer_format(values: Mapping[str, Any], omitted: Omissions) -> JsonConstraint | None:
    given = read(TEXT, values.get("text", {}), omitted, "text").get("format")
    if given is None:
        return None
    kind = field.word(*_FORMAT_KNOWN)("text.format.type", given.get("type"))
    omitted.note("text.format", given, _FORMAT_KNOWN[kind])
    if kind == "text":
        return None
    if kind == "json_object":
        return JsonConstraint(field="text.format")
    schema = {name: value for name, value in given.items() if name != "type"}
    return replace(parse_schema("text.format", schema, omitted), field="text.format")


def _logprobs(values: Mapping[str, Any]) -> int | None:
    """Return how many alternatives are wanted; None: no logprobs at all."""
    top: int = values.get("top_logprobs", 0)
    return top if top or _LOGPROBS in values.get("include", ()) else None


def _repeated(values: Mapping[str, Any], request: GenerationRequest) -> dict[str, Any]:
    """Return what a response repeats of a body that has been checked."""
    tools = values.get("tools", [])
    text = values.get("text", {})
    repeated = {
        "instructions": values.get("instructions"),
        "max_output_tokens": values.get("max_output_tokens"),
        "metadata": values.get("metadata", {}),
        "parallel_tool_calls": values.get("parallel_tool_calls", True),
        "previous_response_id": values.get("previous_response_id"),
        "reasoning": {"effort": _shown_effort(request), "summary": None},
        "temperature": request.sampling.temperature,
        "text": {"format": text.get("format") or {"type": "text"}, "verbosity": "medium"},
        "tool_choice": values.get("tool_choice", "auto"),
        "tools": shown_tools(tools),
        "top_logprobs": values.get("top_logprobs", 0),
        "top_p": request.sampling.top_p,
        "truncation": values.get("truncation", "disabled"),
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
