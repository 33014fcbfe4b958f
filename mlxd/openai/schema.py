"""Body → `GenerationRequest`, or an error that names the field. THE table of what each documented field does here.

`mlxd/http/table.py` says what the treatments are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlxd.engine.base import ChatPrompt, GenerationRequest, TextPrompt, TokenPrompt
from mlxd.http import field
from mlxd.http.noise import NoiseFilter, require_messages
from mlxd.http.omissions import Omissions
from mlxd.http.sampling import SAMPLING, sampling_params
from mlxd.http.table import Habit, Omitted, Refused, Table, Works, read
from mlxd.openai.chunk import FUNCTION_TOOLS, CallShape
from mlxd.openai.message import parse_messages
from mlxd.openai.response_format import parse_response_format
from mlxd.openai.tool import custom_names, parse_tools, uses_functions
from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter

MAX_TOKENS = 2**31 - 1
UP_TO_THE_CONTEXT = field.standing_for(field.integer(1, MAX_TOKENS), {-1: None, 0: None})
_MAX_PROMPTS = 128
_MAX_ANSWERS = 128
# What OpenAI documents for /v1/completions when max_tokens is left out.
_COMPLETION_TOKENS = 16


_COMMON: Table = {
    **SAMPLING,
    "model": Works(field.text),
    "max_tokens": Works(UP_TO_THE_CONTEXT, "-1 and 0 are no bound"),
    "stop": Works(field.stop),
    "stream": Works(field.boolean),
    "stream_options": Works(field.mapping),
    "n": Works(field.integer(1, _MAX_ANSWERS)),
    "user": Habit(),
    "metadata": Habit(),
    "store": Habit(),
    "service_tier": Habit(),
    "safety_identifier": Habit(),
    "prompt_cache_key": Habit(),
    "prompt_cache_options": Habit(),
    "prompt_cache_retention": Habit(),
}
CHAT: Table = {
    **_COMMON,
    "messages": Works(field.sequence),
    "max_completion_tokens": Works(UP_TO_THE_CONTEXT, "-1 and 0 are no bound"),
    "audio": Omitted(),
    "chat_template_kwargs": Works(field.template_kwargs),
    "function_call": Works(field.anything, "read as tool_choice"),
    "functions": Works(field.listing, "read as tools"),
    "logprobs": Works(field.boolean),
    "modalities": Works(field.listing, 'all but "text" are left out; without "text" a 400'),
    "moderation": Omitted(),
    "parallel_tool_calls": Works(field.boolean),
    "prediction": Omitted(),
    "reasoning_effort": Works(field.string, "each word is the nearest that the template knows"),
    "response_format": Works(field.mapping),
    "tool_choice": Works(field.anything),
    "tools": Works(field.listing),
    "top_logprobs": Works(field.integer(0, 20)),
    "verbosity": Omitted(("medium",)),
    "web_search_options": Omitted(),
}
COMPLETION: Table = {
    **_COMMON,
    "max_tokens": Works(field.standing_for(field.integer(0, MAX_TOKENS), {-1: None}), "-1 is no bound"),
    "prompt": Works(field.anything),
    "best_of": Works(field.integer(1, _MAX_ANSWERS), "as large as n at most"),
    "echo": Works(field.boolean),
    "logprobs": Works(field.integer(0, 20)),  # 0 asks for the chosen tokens' logprobs
    "suffix": Refused(("",)),
}
_STREAM_OPTIONS: Table = {"include_usage": Works(field.boolean), "include_obfuscation": Habit()}


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


def parse_chat(body: Mapping[str, Any], noise: NoiseFilter, omitted: Omissions) -> ParsedBody:
    """Read the body of /v1/chat/completions, without the noise in it.

    Raises:
        UnsupportedParameter: a documented field at a value that this server does not act upon.
        InvalidRequest: a value of the wrong type or out of its bounds, or an omission that is refused.
    """
    values = read(CHAT, body, omitted)
    if "messages" not in values:
        raise InvalidRequest("messages is required: a list of messages, the oldest first", param="messages")
    answer = None
    if "response_format" in values:
        answer = parse_response_format(values["response_format"], omitted)
    _leave_out_modalities(values.get("modalities", []), omitted)
    rules = parse_tools(values, omitted, answer)
    messages = parse_messages(values["messages"], omitted, noise)
    require_messages(messages)
    prompt = ChatPrompt(
        messages,
        values.get("chat_template_kwargs", {}),
        rules.use,
        values.get("reasoning_effort"),
    )
    request = GenerationRequest(
        prompt,
        sampling_params(values),
        # The newer name wins: proxies add one of them.
        values.get("max_completion_tokens", values.get("max_tokens")),
        values.get("stop", ()),
        logprobs=_chat_logprobs(values),
        constraint=answer if rules.constraint is None else rules.constraint,
    )
    shape = CallShape(uses_functions=uses_functions(values), custom=custom_names(values))
    return replace(_parsed(values, [request], omitted), calls=shape)


def parse_completion(body: Mapping[str, Any], omitted: Omissions) -> ParsedBody:
    """Read the body of /v1/completions; raises as `parse_chat` does."""
    values = read(COMPLETION, body, omitted)
    if "prompt" not in values:
        raise InvalidRequest("prompt is required: a text, a list of texts, or lists of tokens", param="prompt")
    max_tokens, echo = values.get("max_tokens"), values.get("echo", False)
    if max_tokens == 0 and not echo:
        raise InvalidRequest("max_tokens is 0, which asks for nothing unless echo is true", param="max_tokens")
    prompts = _prompts(values["prompt"])
    n = values.get("n", 1)
    best_of = values.get("best_of", n)
    if best_of > n:
        raise UnsupportedParameter(
            f"best_of is {best_of} and n is {n}: the best of more answers than are returned is not supported;"
            " leave best_of out",
            param="best_of",
        )
    if len(prompts) * n > _MAX_ANSWERS:
        raise InvalidRequest(f"{len(prompts)} prompts with n = {n} are more than {_MAX_ANSWERS} answers", param="n")
    logprobs = values.get("logprobs")
    requests = [
        GenerationRequest(
            prompt,
            sampling_params(values),
            # A prompt that is only scored makes a token too, which nobody sees.
            None if max_tokens is None else max(max_tokens, 1),
            values.get("stop", ()),
            logprobs=logprobs,
            # The text of tokens is known to the model alone.
            scores_prompt=echo and (logprobs is not None or isinstance(prompt, TokenPrompt)),
            default_max_tokens=_COMPLETION_TOKENS,
        )
        for prompt in prompts
    ]
    return replace(_parsed(values, requests, omitted), echo=echo, echoes_only=max_tokens == 0)


def _leave_out_modalities(modalities: list[Any], omitted: Omissions) -> None:
    if modalities and "text" not in modalities:
        raise UnsupportedParameter(
            'modalities without "text" is not supported; leave it out or send ["text"]', param="modalities"
        )
    for place, modality in enumerate(modalities):
        if modality != "text":
            omitted.leave_out(f"modalities[{place}]")


def _prompts(value: Any) -> list[TextPrompt | TokenPrompt]:
    given = field.texts_or_tokens("prompt", value, _MAX_PROMPTS)
    return [TextPrompt(item) if isinstance(item, str) else TokenPrompt(item) for item in given]


def _chat_logprobs(values: Mapping[str, Any]) -> int | None:
    if not values.get("logprobs", False):
        if "top_logprobs" in values and values["top_logprobs"] > 0:
            raise InvalidRequest("top_logprobs is allowed only when logprobs is true", param="top_logprobs")
        return None
    top: int = values.get("top_logprobs", 0)
    return top


def _parsed(values: Mapping[str, Any], requests: Iterable[GenerationRequest], omitted: Omissions) -> ParsedBody:
    stream = values.get("stream", False)
    include_usage = _include_usage(values, omitted, stream=stream)
    return ParsedBody(tuple(requests), stream, include_usage, values.get("n", 1))


def _include_usage(values: Mapping[str, Any], omitted: Omissions, *, stream: bool) -> bool:
    options = values.get("stream_options")
    if options is None:
        return False
    asked = read(_STREAM_OPTIONS, options, omitted, "stream_options").get("include_usage", False)
    return stream and bool(asked)  # a whole answer has its usage anyway
