"""A chat completion of OpenAI's, whole or as a stream, as events of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxd.cloud.protocol.base import part, whole, word
from mlxd.engine.base import AnswerEvent, Delta, Finished, FinishReason, Prefilling, TextKind, Usage
from mlxd.engine.tool import CallPiece, is_object
from mlxd.protocol.errors import StreamInterrupted, UpstreamError

_REASONS = {"length": FinishReason.LENGTH, "content_filter": FinishReason.REFUSED}


class ChatEvents:
    """Reads one answer; see `base.Reader`."""

    def __init__(self) -> None:
        self.id = ""
        self._has_begun = False
        self._calls: dict[int, str] = {}  # the id of each call by its index in the chat
        self._current = 0  # the index of the last call
        self._is_calling = False  # nothing has been said since
        self._reason: FinishReason | None = None
        self._has_refused = False
        self._usage: Mapping[str, Any] = {}

    def whole(self, body: Mapping[str, Any]) -> list[AnswerEvent]:
        """Read a whole completion as the stream that it could have been."""
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        said = choice.get("message")
        if not isinstance(said, dict):
            raise UpstreamError("the upstream answered with something that is no answer to a chat")
        calls = said.get("tool_calls")
        numbered = [_numbered(index, call) for index, call in enumerate(calls if isinstance(calls, list) else ())]
        return self.take({**body, "choices": [{**choice, "delta": {**said, "tool_calls": numbered}}]}) + self.end()

    def take(self, chunk: Mapping[str, Any]) -> list[AnswerEvent]:
        """Read a chunk; roles and empty deltas say nothing."""
        error = chunk.get("error")
        if error is not None:
            words = word(error, "message") if isinstance(error, dict) else str(error)
            raise StreamInterrupted(f"the upstream ended its answer with an error: {words}")
        events = self._begin(chunk)
        self._usage = part(chunk, "usage") or self._usage
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            events += self._delta(part(choice, "delta"))
            reason = choice.get("finish_reason")
            if reason is not None:
                self._reason = _REASONS.get(reason) if isinstance(reason, str) else None
        return events

    def end(self) -> list[AnswerEvent]:
        """Return the end, which a chat tells before its usage. Which stop sequence it was it does not tell."""
        reason = FinishReason.REFUSED if self._has_refused else self._reason or FinishReason.STOP
        return [*self._begin({}), Finished(0, reason, self._counted())]

    def _begin(self, chunk: Mapping[str, Any]) -> list[AnswerEvent]:
        if self._has_begun:
            return []
        self._has_begun, self.id = True, word(chunk, "id")
        return [Prefilling(0, 0, 0)]

    def _delta(self, delta: Mapping[str, Any]) -> list[AnswerEvent]:
        refusal = word(delta, "refusal")
        self._has_refused = self._has_refused or bool(refusal)
        # Servers call thoughts by one of two names.
        thoughts = word(delta, "reasoning_content") or word(delta, "reasoning")
        texts = ((TextKind.REASONING, thoughts), (TextKind.CONTENT, _content(delta) + refusal))
        events: list[AnswerEvent] = [Delta(0, text, kind, 0) for kind, text in texts if text]
        if events:
            self._is_calling = False
        calls = delta.get("tool_calls")
        pieces = [self._call(call) for call in (calls if isinstance(calls, list) else ()) if isinstance(call, dict)]
        return [*events, Delta(0, "", TextKind.TOOL, 0, calls=tuple(pieces))] if pieces else events

    def _call(self, call: Mapping[str, Any]) -> CallPiece:
        """Read a piece of a call, of which the first has a head."""
        function = part(call, "function")
        index = call.get("index")
        index = index if isinstance(index, int) else self._current
        call_id, name = word(call, "id"), word(function, "name")
        if call_id and name and self._calls.get(index, call_id) != call_id:
            index = len(self._calls)  # some servers give every call the same index
        arguments = word(function, "arguments")
        if index not in self._calls:
            self._calls[index], self._current, self._is_calling = call_id, index, True
            return CallPiece(name, arguments, is_last=False, id=call_id)
        if index != self._current or not self._is_calling:
            raise StreamInterrupted("the upstream mixed the pieces of several calls, which a message cannot say")
        return CallPiece(None, arguments, is_last=False)

    def _counted(self) -> Usage:
        prompt, answer = (part(self._usage, f"{name}_tokens_details") for name in ("prompt", "completion"))
        return Usage(
            whole(self._usage.get("prompt_tokens")),
            whole(prompt.get("cached_tokens")),
            whole(self._usage.get("completion_tokens")),
            whole(prompt.get("cache_write_tokens")),
            whole(answer.get("reasoning_tokens")),
        )


def _numbered(index: int, call: Any) -> dict[str, Any]:
    """Return a call of a whole answer as a stream has it.

    Raises:
        UpstreamError: it is no call of a function, or its arguments are no JSON object.
    """
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise UpstreamError("the upstream answered with a call of what is no function")
    arguments = word(function, "arguments") or "{}"
    if not is_object(arguments):
        raise UpstreamError(f"the upstream called {word(function, 'name')!r} with arguments that are no JSON object")
    return {**call, "index": index, "function": {**function, "arguments": arguments}}


def _content(said: Mapping[str, Any]) -> str:
    """Return the text of a message or a delta, which some servers give in parts.

    Raises:
        UpstreamError: a part is no text.
    """
    content = said.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        raise UpstreamError("the upstream answered with parts that are no text, which a message has no place for")
    return "".join(word(part, "text") for part in parts)
