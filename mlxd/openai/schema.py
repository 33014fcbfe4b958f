"""Bodies of /v1/chat/completions and /v1/completions → `GenerationRequest`s, or an error that names the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mlxd.engine.base import ChatPrompt, GenerationRequest, TextPrompt, TokenPrompt
from mlxd.engine.constraint import JsonConstraint
from mlxd.http.noise import NoiseFilter, require_messages
from mlxd.http.omissions import Omissions
from mlxd.http.sampling import MaxTokens, Sampling, Stops, TemplateKwargs, TokenLimit, texts_or_tokens
from mlxd.http.schema import (
    Filled,
    Habit,
    Object,
    Schema,
    Text,
    checked,
    dumped,
    omitted,
    read,
    read_both,
    read_by,
    refused,
    wrong,
)
from mlxd.openai.chunk import FUNCTION_TOOLS, CallShape
from mlxd.openai.message import parse_messages
from mlxd.openai.tool import parse_functions, parse_tools
from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter

_MAX_PROMPTS = 128
_MAX_ANSWERS = 128
# What OpenAI documents for /v1/completions when max_tokens is left out.
_COMPLETION_TOKENS = 16

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KINDS = Literal["text", "json_object", "json_schema"]
_Answers = Annotated[int, Meta(ge=1, le=_MAX_ANSWERS)]
_TopLogprobs = Annotated[int, Meta(ge=0, le=20)]


def _name(path: str, value: Any) -> Any:
    if not _NAME.fullmatch(checked(Text, path, value)):
        raise wrong(path, value, "1 to 64 letters, digits, underscores and dashes")
    return value


class _StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool = False
    include_obfuscation: Habit = None


class _Body(msgspec.Struct, kw_only=True):
    model: Text
    max_tokens: TokenLimit = None
    stop: Stops = ()
    stream: bool = False
    stream_options: _StreamOptions = msgspec.field(default_factory=_StreamOptions)
    n: _Answers = 1
    user: Habit = None
    metadata: Habit = None
    store: Habit = None
    service_tier: Habit = None
    safety_identifier: Habit = None
    prompt_cache_key: Habit = None
    prompt_cache_options: Habit = None
    prompt_cache_retention: Habit = None


class _Plain(msgspec.Struct, kw_only=True):
    type: str


class _Schema(msgspec.Struct, kw_only=True):
    # For logs of OpenAI's; local servers do not ask for it.
    name: Annotated[Any, read_by(_name, "a text that is not empty", type="string")] = None
    description: Habit = None
    schema: Schema = None
    strict: bool = True  # enforced anyway


class _ChatFormat(_Plain, kw_only=True):
    json_schema: _Schema


class _TextFormat(_Schema, kw_only=True):
    type: str


class ChatBody(_Body, kw_only=True):
    """A body of /v1/chat/completions."""

    messages: Filled
    max_completion_tokens: TokenLimit = None
    audio: Annotated[Any, omitted()] = None
    chat_template_kwargs: TemplateKwargs = {}
    function_call: Annotated[Any, Meta(description="read as tool_choice")] = "auto"
    functions: Annotated[list[Any], Meta(description="read as tools")] = []
    logprobs: bool = False
    modalities: Annotated[list[Any], Meta(description='all but "text" are left out; without "text" a 400')] = []
    moderation: Annotated[Any, omitted()] = None
    parallel_tool_calls: bool = True
    prediction: Annotated[Any, omitted()] = None
    reasoning_effort: Annotated[str | None, Meta(description="each word is the nearest that the template knows")] = None
    response_format: Object | None = None
    tool_choice: Any = None
    tools: list[Any] = []
    top_logprobs: _TopLogprobs = 0
    verbosity: Annotated[Any, omitted("medium")] = None
    web_search_options: Annotated[Any, omitted()] = None


class CompletionBody(_Body, kw_only=True):
    """A body of /v1/completions."""

    prompt: Annotated[Any, texts_or_tokens(_MAX_PROMPTS)]
    max_tokens: Annotated[MaxTokens | None, Meta(description="-1 is unlimited")] = None
    best_of: Annotated[_Answers | None, Meta(description="as large as n at most")] = None
    echo: bool = False
    logprobs: _TopLogprobs | None = None  # 0 asks for the chosen tokens' logprobs
    suffix: Annotated[Any, refused("")] = None


@dataclass(frozen=True, slots=True)
class ParsedBody:
    """A body that can be answered."""

    requests: tuple[GenerationRequest, ...]  # one for chat; one per prompt for completions
    stream: bool
    include_usage: bool
    n: int = 1  # answers per prompt
    calls: CallShape = FUNCTION_TOOLS
    echo: bool = False  # the prompt stands before its answer
    echoes_only: bool = False  # ... and no answer is wanted


def parse_chat(given: Mapping[str, Any], noise: NoiseFilter, omissions: Omissions) -> ParsedBody:
    """Read the body of /v1/chat/completions, without the noise in it.

    Raises:
        UnsupportedParameter: a documented field at a value that this server does not act upon.
        InvalidRequest: a value of the wrong type or out of its bounds, or an omission that is refused.
    """
    body, sampling = read_both(ChatBody, Sampling, given, omissions)
    answer = None if body.response_format is None else parse_response_format(body.response_format, omissions)
    _leave_out_modalities(body.modalities, omissions)
    # A body that speaks of functions, as before there were tools, is answered by calls that are made that way.
    uses_functions, custom = bool(body.functions) and not body.tools, frozenset[str]()
    if uses_functions:
        rules = parse_functions(body.functions, body.function_call, omissions, answer)
    else:
        rules, custom = parse_tools(
            body.tools, body.tool_choice, omissions, parallel=body.parallel_tool_calls, answer=answer
        )
    messages = parse_messages(body.messages, omissions, noise)
    require_messages(messages)
    if body.top_logprobs > 0 and not body.logprobs:
        raise InvalidRequest("top_logprobs is allowed only when logprobs is true", param="top_logprobs")
    # The newer name wins: proxies add one of them.
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    request = GenerationRequest(
        ChatPrompt(messages, body.chat_template_kwargs, rules.use, body.reasoning_effort),
        sampling.params(),
        max_tokens if max_tokens is not None and max_tokens > 0 else None,
        body.stop,
        logprobs=body.top_logprobs if body.logprobs else None,
        constraint=answer if rules.constraint is None else rules.constraint,
    )
    shape = CallShape(uses_functions=uses_functions, custom=custom)
    return ParsedBody((request,), body.stream, _include_usage(body), body.n, shape)


def parse_completion(given: Mapping[str, Any], omissions: Omissions) -> ParsedBody:
    """Read the body of /v1/completions; raises as `parse_chat` does."""
    body, sampling = read_both(CompletionBody, Sampling, given, omissions)
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequest("max_tokens is 0, which asks for nothing unless echo is true", param="max_tokens")
    if body.best_of is not None and body.best_of > body.n:
        raise UnsupportedParameter(
            f"best_of is {body.best_of} and n is {body.n}: the best of more answers than are returned is not "
            "supported; leave best_of out",
            param="best_of",
        )
    if len(body.prompt) * body.n > _MAX_ANSWERS:
        message = f"{len(body.prompt)} prompts with n = {body.n} are more than {_MAX_ANSWERS} answers"
        raise InvalidRequest(message, param="n")
    max_tokens = None if body.max_tokens == -1 else body.max_tokens
    requests = [
        GenerationRequest(
            TextPrompt(prompt) if isinstance(prompt, str) else TokenPrompt(prompt),
            sampling.params(),
            # A prompt that is only scored makes a token too, which nobody sees.
            None if max_tokens is None else max(max_tokens, 1),
            body.stop,
            logprobs=body.logprobs,
            # The text of tokens is known to the model alone.
            scores_prompt=body.echo and (body.logprobs is not None or not isinstance(prompt, str)),
            default_max_tokens=_COMPLETION_TOKENS,
        )
        for prompt in body.prompt
    ]
    return ParsedBody(
        tuple(requests),
        body.stream,
        _include_usage(body),
        body.n,
        echo=body.echo,
        echoes_only=max_tokens == 0,
    )


def _leave_out_modalities(modalities: list[Any], omissions: Omissions) -> None:
    if modalities and "text" not in modalities:
        raise UnsupportedParameter(
            'modalities without "text" is not supported; leave it out or send ["text"]', param="modalities"
        )
    for place, modality in enumerate(modalities):
        if modality != "text":
            omissions.leave_out(f"modalities[{place}]")


def _include_usage(body: _Body) -> bool:
    return body.stream and body.stream_options.include_usage  # a whole answer has its usage anyway


def parse_response_format(given: Object, omissions: Omissions) -> JsonConstraint | None:
    """Return what binds the answer of a chat; None for plain text. A schema is enforced, be it `strict` or not.

    Raises:
        InvalidRequest: another type, or a malformed schema. What a schema asks for is checked when the model is known.
    """
    return _parse("response_format", given, omissions, _ChatFormat)


def parse_text_format(given: Object, omissions: Omissions) -> JsonConstraint | None:
    """Return what binds a response; raises as `parse_response_format`."""
    return _parse("text.format", given, omissions, _TextFormat)


def _parse(
    path: str, given: Object, omissions: Omissions, shape: type[_ChatFormat | _TextFormat]
) -> JsonConstraint | None:
    kind = checked(_KINDS, f"{path}.type", given.get("type"))
    if kind != "json_schema":
        read(_Plain, given, omissions, path)
        return None if kind == "text" else JsonConstraint(field=path)
    asked = read(shape, given, omissions, path)
    schema = asked.json_schema.schema if isinstance(asked, _ChatFormat) else asked.schema
    return JsonConstraint(None if schema is None else dumped(path, schema), path)
