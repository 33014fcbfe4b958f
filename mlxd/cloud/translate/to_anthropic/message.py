"""The messages of a chat → Anthropic's system text and turns of blocks. No word is changed, none is lost."""

from __future__ import annotations

from typing import Any

import orjson

from mlxd.cloud.translate.reading import DROPPED, SAID, Omitted, Reading, Refused, Table, listing, mapping, text, wrong

_USER: Table = {"role": SAID, "content": SAID, "name": Omitted(("",))}
_TOOL: Table = {"role": SAID, "content": SAID, "tool_call_id": SAID, "name": DROPPED}  # the call has the name
_ASSISTANT: Table = {
    "role": SAID,
    "content": SAID,
    "tool_calls": SAID,
    "thinking_blocks": SAID,
    "reasoning_content": SAID,
    "reasoning": SAID,
    "name": Omitted(("",)),
    "refusal": SAID,
    "audio": Omitted(),
    "function_call": Refused((), "send it as one of tool_calls"),
    "annotations": Omitted(([],)),
}
_TEXT: Table = {"type": SAID, "text": SAID, "prompt_cache_breakpoint": DROPPED}
_IMAGE: Table = {"type": SAID, "image_url": SAID, "prompt_cache_breakpoint": DROPPED}
# There an image is always looked at in full.
_IMAGE_URL: Table = {"url": SAID, "detail": Omitted(("auto", "high"))}
_CALL: Table = {"id": SAID, "type": SAID, "function": SAID, "index": DROPPED}
_FUNCTION: Table = {"name": SAID, "arguments": SAID}
# What the note in the place of a part calls it.
_KINDS = {"image_url": "image", "input_audio": "audio"}
_THOUGHTS = {"thinking": ("thinking", "signature"), "redacted_thinking": ("data",)}

Block = dict[str, Any]


def conversation(messages: Any, reading: Reading) -> tuple[str | list[Block], list[dict[str, Any]]]:
    """Return the system text that stands first, and the turns after it.

    Results of tools that follow each other become one user turn, as Anthropic wants them, with what the user says next.

    Raises:
        UnsupportedParameter: audio, files, names of participants, custom tools, an answer that is to be gone on with.
        InvalidRequest: something is malformed.
    """
    system: list[tuple[str, Any]] = []
    turns: list[dict[str, Any]] = []
    results: list[Block] | None = None  # the blocks of the last turn, if it is one of results
    for place, message in enumerate(listing("messages", messages)):
        path = f"messages[{place}]"
        role = mapping(path, message).get("role")
        match role:
            case "system" | "developer":
                content = reading.read(_USER, message, path).get("content")
                if turns:
                    turns.append({"role": "system", "content": _content(f"{path}.content", content, reading)})
                else:
                    system.append((f"{path}.content", content))
            case "user":
                content = reading.read(_USER, message, path).get("content")
                if results is None:
                    blocks = _content(f"{path}.content", content, reading, takes_images=True)
                    turns.append({"role": "user", "content": blocks})
                else:
                    results += _blocks(f"{path}.content", content, reading, takes_images=True)
            case "tool":
                if results is None:
                    results = []
                    turns.append({"role": "user", "content": results})
                results.append(_result(path, message, reading))
                continue
            case "assistant":
                turns += _assistant(path, message, reading)
            case _:
                raise wrong(f"{path}.role", role, "system, developer, user, assistant or tool")
        results = None
    if turns and turns[-1]["role"] == "assistant":
        raise reading.refusal(
            f"messages[{len(messages) - 1}]", "there it would be the beginning of the answer: end with the user's turn"
        )
    return _system(system, reading), turns


def _system(contents: list[tuple[str, Any]], reading: Reading) -> str | list[Block]:
    if len(contents) == 1:
        return _content(*contents[0], reading)
    return [block for path, content in contents for block in _blocks(path, content, reading)]


def _content(path: str, content: Any, reading: Reading, *, takes_images: bool = False) -> str | list[Block]:
    """Return a text as it is, and parts as blocks."""
    return content if isinstance(content, str) else _blocks(path, content, reading, takes_images=takes_images)


def _blocks(path: str, content: Any, reading: Reading, *, takes_images: bool = False) -> list[Block]:
    """Return the blocks of a text or of parts; empty texts, which Anthropic refuses, are none."""
    if isinstance(content, str):
        return _text_block(content)
    if not isinstance(content, list):
        raise wrong(path, content, "a text or a list of parts")
    blocks: list[Block] = []
    for place, part in enumerate(content):
        here = f"{path}[{place}]"
        kind = mapping(here, part).get("type")
        if kind == "text":
            blocks += _text_block(text(f"{here}.text", reading.read(_TEXT, part, here).get("text")))
        elif kind == "image_url" and takes_images:
            blocks.append(_image(here, part, reading))
        elif kind == "refusal":
            blocks += _text_block(text(f"{here}.refusal", part.get("refusal")))
        else:
            blocks += _text_block(reading.leave_out_part(here, _KINDS.get(str(kind), str(kind))))
    return blocks


def _text_block(words: str) -> list[Block]:
    return [{"type": "text", "text": words}] if words else []


def _image(path: str, part: dict[str, Any], reading: Reading) -> Block:
    source = reading.read(_IMAGE, part, path).get("image_url")
    url = text(f"{path}.image_url.url", reading.read(_IMAGE_URL, source, f"{path}.image_url").get("url"))
    if url.startswith(("https://", "http://")):
        return {"type": "image", "source": {"type": "url", "url": url}}
    head, comma, data = url.partition(",")
    media_type, semicolon, encoding = head.removeprefix("data:").partition(";")
    if not (url.startswith("data:") and comma and semicolon and encoding == "base64" and media_type):
        raise wrong(f"{path}.image_url.url", url, "an http address, or data:TYPE;base64,DATA")
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def _result(path: str, message: dict[str, Any], reading: Reading) -> Block:
    values = reading.read(_TOOL, message, path)
    call_id = text(f"{path}.tool_call_id", values.get("tool_call_id"))
    content = _content(f"{path}.content", values.get("content", ""), reading, takes_images=True)
    return {"type": "tool_result", "tool_use_id": call_id, "content": content}


def _assistant(path: str, message: dict[str, Any], reading: Reading) -> list[dict[str, Any]]:
    """Return the turn; none where nothing was said, which Anthropic does not take."""
    values = reading.read(_ASSISTANT, message, path)
    content, calls = values.get("content"), listing(f"{path}.tool_calls", values.get("tool_calls", []))
    thoughts = listing(f"{path}.thinking_blocks", values.get("thinking_blocks", []))
    for name in ("reasoning_content", "reasoning"):
        if values.get(name) and not thoughts:
            # Anthropic takes thoughts back with the signature that came with them, and no others.
            reading.leave_out(f"{path}.{name}")
    if content in (None, []):
        content = values.get("refusal")
    if isinstance(content, str) and not calls and not thoughts:
        return [{"role": "assistant", "content": content}] if content else []
    blocks = [_thought(f"{path}.thinking_blocks[{at}]", thought) for at, thought in enumerate(thoughts)]
    if content is not None:
        blocks += _blocks(f"{path}.content", content, reading)
    blocks += [_call(f"{path}.tool_calls[{at}]", call, reading) for at, call in enumerate(calls)]
    return [{"role": "assistant", "content": blocks}] if blocks else []


def _thought(path: str, thought: Any) -> Block:
    """Return a block of thoughts that `answer` or `chunk` has handed out."""
    kind = mapping(path, thought).get("type")
    if not isinstance(kind, str) or kind not in _THOUGHTS:
        raise wrong(f"{path}.type", kind, "'thinking' or 'redacted_thinking'")
    return {"type": kind} | {name: text(f"{path}.{name}", thought.get(name)) for name in _THOUGHTS[kind]}


def _call(path: str, call: Any, reading: Reading) -> Block:
    values = reading.read(_CALL, call, path)
    if values.get("type", "function") != "function":
        raise reading.refusal(f"{path}.type", "only 'function' can")
    function = reading.read(_FUNCTION, values.get("function"), f"{path}.function")
    return {
        "type": "tool_use",
        "id": text(f"{path}.id", values.get("id")),
        "name": text(f"{path}.function.name", function.get("name")),
        "input": _input(f"{path}.function.arguments", function.get("arguments", "")),
    }


def _input(path: str, arguments: Any) -> dict[str, Any]:
    """Return the object that the text *arguments* holds; calls without arguments have an empty text in some clients."""
    if isinstance(arguments, dict):
        return arguments
    try:
        value = orjson.loads(text(path, arguments) or "{}")
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise wrong(path, arguments, "a text that holds a JSON object")
    return value
