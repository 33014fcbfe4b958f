"""Anthropic's messages of blocks → the maps that a chat template wants. No word of a user is changed or left out.

What clients add for their own accounting is removed (`mlxd/http/noise.py`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from mlxd.anthropic.block import Block, BlockReader, Marked
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.http.schema import Habit, Object, Text, checked, read, wrong
from mlxd.http.sealed import opened
from mlxd.protocol.errors import InvalidRequest
from mlxd.protocol.quote import shown

# All other blocks may be anybody's.
_OF_USER = frozenset({"tool_result"})
_OF_ASSISTANT = frozenset({"thinking", "redacted_thinking", "tool_use"})

Message = dict[str, Any]


class _Message(msgspec.Struct, kw_only=True):
    role: str
    content: Any = None


class _System(_Message, kw_only=True):
    clear_at: Any = None


class _Compaction(Marked, kw_only=True):
    content: str
    tool_changes: Any = None
    signature: Habit = None
    encrypted_content: Habit = None


class _Thinking(msgspec.Struct, kw_only=True):
    type: str
    thinking: str = ""
    signature: Any = None


class _Use(Marked, kw_only=True):
    id: Text
    name: Text
    input: Object = msgspec.field(default_factory=dict)
    caller: Habit = None


class _Result(Marked, kw_only=True):
    tool_use_id: Text
    content: Any = None
    is_error: bool = False


class MessageReader:
    """Reads the system prompt and the messages of one body."""

    def __init__(self, blocks: BlockReader, omissions: Omissions, noise: NoiseFilter) -> None:
        """Take what reads blocks, what collects what is left out, and what removes noise."""
        self._reader = blocks
        self._omissions = omissions
        self._noise = noise

    def system(self, value: Any) -> list[Message]:
        """Return the system message of a text or of blocks; none where there is no text.

        Raises:
            UnsupportedParameter: something is left out, and that is refused.
            InvalidRequest: a malformed block.
        """
        text = "\n\n".join(self._noise.keep("system", self._reader.texts("system", value), is_first=True))
        return [{"role": "system", "content": text}] if text else []

    def messages(self, given: list[Any]) -> list[Message]:
        """Return the messages; results of tools become messages of role `tool`, before the text that came with them.

        Neighbors of one role are one turn, as Anthropic has it. What a compaction block sums up is not there any more.

        Raises:
            UnsupportedParameter: something is left out, and that is refused.
            InvalidRequest: a message without a known role, or a malformed block.
        """
        for place, message in enumerate(given):
            role = checked(Object, f"messages[{place}]", message).get("role")
            if role not in ("user", "assistant", "system"):
                raise wrong(f"messages[{place}].role", role, "'user' or 'assistant'")
        last_user = max((place for place, message in enumerate(given) if message["role"] == "user"), default=-1)
        first = max((place for place, message in enumerate(given) if _has_summary(message.get("content"))), default=0)
        parsed: list[Message] = []
        for place, message in enumerate(given[first:], first):
            path, role = f"messages[{place}]", message["role"]
            read(_System if role == "system" else _Message, message, self._omissions, path)
            blocks = self._reader.blocks(f"{path}.content", message.get("content"))
            summary, rest = _compacted(blocks)
            if summary is not None:
                parsed.append({"role": "user", "content": self._summary(*summary)})
            if summary is None or rest:
                is_over = message.get("clear_at") == "next_user_message" and place < last_user
                for turn in self._turns(role, rest, is_over=is_over):
                    _append(parsed, turn)
        if parsed and parsed[-1] == {"role": "assistant", "content": ""}:
            parsed.pop()  # nothing is begun that could be continued
        return parsed

    def _summary(self, path: str, block: Block) -> str:
        """Return what sums up the conversation before, and what of its tools has changed in it."""
        compaction = read(_Compaction, block, self._omissions, path)
        changes = self._reader.blocks(f"{path}.tool_changes", compaction.tool_changes)
        told = "".join(self._reader.text(here, change) for here, change in changes)
        return f"{compaction.content}\n\n{told}" if told else compaction.content

    def _turns(self, role: str, blocks: list[tuple[str, Block]], *, is_over: bool) -> list[Message]:
        match role:
            case "assistant":
                return [self._assistant(blocks)]
            case "user":
                return self._user(blocks)
        texts = [text for here, block in blocks if (text := self._reader.text(here, block))]
        text = "" if is_over else "".join(self._noise.keep("system", texts))
        return [{"role": "system", "content": text}] if text else []

    def _user(self, blocks: list[tuple[str, Block]]) -> list[Message]:
        results: list[Message] = []
        texts: list[str] = []
        for here, block in blocks:
            _refuse_foreign(here, block, "user", _OF_ASSISTANT)
            if block["type"] == "tool_result":
                results.append(self._result(here, block))
            elif (text := self._reader.text(here, block)) or block["type"] == "text":
                texts.append(text)
        kept = self._noise.keep("user", texts, others=len(results))
        # A turn without a word is one, unless it was nothing but noise.
        if any(kept) or not (results or (texts and not kept)):
            return [*results, {"role": "user", "content": "".join(kept)}]
        return results

    def _result(self, path: str, block: Block) -> Message:
        result = read(_Result, block, self._omissions, path)
        text = "".join(self._reader.texts(f"{path}.content", result.content))
        if result.is_error:
            text = f"Error: {text}"  # templates have no other place for it
        return {"role": "tool", "tool_call_id": result.tool_use_id, "content": text}

    def _assistant(self, blocks: list[tuple[str, Block]]) -> Message:
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[dict[str, Any]] = []
        for here, block in blocks:
            _refuse_foreign(here, block, "assistant", _OF_USER)
            match block["type"]:
                case "thinking":
                    thoughts.append(_thought(read(_Thinking, block, self._omissions, here)))
                case "tool_use":
                    calls.append(_call(read(_Use, block, self._omissions, here)))
                case _:
                    texts.append(self._reader.text(here, block))
        parsed: Message = {"role": "assistant", "content": "".join(texts)}
        if calls:
            parsed["tool_calls"] = calls
        if any(thoughts):
            parsed["reasoning_content"] = "".join(thoughts)
        return parsed


def _has_summary(content: Any) -> bool:
    return isinstance(content, list) and any(map(_is_summary, content))


def _is_summary(block: Any) -> bool:
    """Tell whether a block stands for all before it; one that has failed has no content."""
    return isinstance(block, dict) and block.get("type") == "compaction" and isinstance(block.get("content"), str)


def _compacted(blocks: list[tuple[str, Block]]) -> tuple[tuple[str, Block] | None, list[tuple[str, Block]]]:
    """Return the last summary among the blocks, and what comes after it."""
    for at in reversed(range(len(blocks))):
        if _is_summary(blocks[at][1]):
            return blocks[at], blocks[at + 1 :]
    return None, blocks


def _append(parsed: list[Message], turn: Message) -> None:
    """Add a turn; it is one with the last where both are the user's or both the assistant's."""
    last = parsed[-1] if parsed else None
    if last is None or last["role"] != turn["role"] or turn["role"] not in ("user", "assistant"):
        parsed.append(turn)
    elif turn["role"] == "user":
        last["content"] = "\n\n".join(text for text in (last["content"], turn["content"]) if text)
    else:
        last["content"] += turn["content"]
        if "tool_calls" in turn:
            last["tool_calls"] = [*last.get("tool_calls", ()), *turn["tool_calls"]]
        if "reasoning_content" in turn:
            last["reasoning_content"] = last.get("reasoning_content", "") + turn["reasoning_content"]


def _refuse_foreign(path: str, block: Block, role: str, foreign: frozenset[str]) -> None:
    if block["type"] in foreign:
        raise InvalidRequest(
            f"{path}.type {shown(block['type'])} has no place in a {role} message", param=f"{path}.type"
        )


def _thought(block: _Thinking) -> str:
    """Return a thought: its text, or what is in our own signature; that of another server says nothing here."""
    hidden = opened(block.signature) if isinstance(block.signature, str) else None
    return block.thinking or hidden or ""


def _call(use: _Use) -> dict[str, Any]:
    return {"id": use.id, "type": "function", "function": {"name": use.name, "arguments": use.input}}
