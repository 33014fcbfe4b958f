"""Anthropic's system text and turns of blocks → the messages of a chat. No word is changed, none is lost."""

from __future__ import annotations

from typing import Any

import orjson

from mlxd.cloud.translate.reading import DROPPED, SAID, Omitted, Reading, Table, boolean, listing, mapping, text, wrong
from mlxd.protocol.errors import InvalidRequest
from mlxd.protocol.quote import kind_word

_TURN: Table = {"role": SAID, "content": SAID}
_TEXT: Table = {"type": SAID, "text": SAID, "cache_control": DROPPED, "citations": Omitted(([],))}
_IMAGE: Table = {"type": SAID, "source": SAID, "cache_control": DROPPED, "transformations": Omitted(({},))}
_RESULT: Table = {
    "type": SAID,
    "tool_use_id": SAID,
    "content": SAID,
    "is_error": SAID,
    "cache_control": DROPPED,
    "toolset_name": Omitted(),
}
_USE: Table = {
    "type": SAID,
    "id": SAID,
    "name": SAID,
    "input": SAID,
    "cache_control": DROPPED,
    "caller": Omitted(({"type": "direct"},)),
    "toolset_name": Omitted(),
}
# The signature is Anthropic's seal on its own thoughts; no other server asks for it.
_THINKING: Table = {"type": SAID, "thinking": SAID, "signature": DROPPED}
_SOURCES = {
    "base64": {"type": SAID, "media_type": SAID, "data": SAID},
    "url": {"type": SAID, "url": SAID},
}

Message = dict[str, Any]
Part = dict[str, Any]


def conversation(system: Any, turns: Any, reading: Reading) -> list[Message]:
    """Return the messages; results of tools come before what the user says with them.

    Raises:
        UnsupportedParameter: the last message is an answer to continue.
        InvalidRequest: something is malformed.
    """
    messages: list[Message] = []
    if system is not None:
        texts = [system] if isinstance(system, str) else _texts("system", system, reading)
        if any(texts):
            messages.append({"role": "system", "content": "\n\n".join(texts)})
    for place, turn in enumerate(listing("messages", turns)):
        path = f"messages[{place}]"
        values = reading.read(_TURN, turn, path)
        role, content = values.get("role"), values.get("content")
        match role:
            case "user":
                messages += _user(f"{path}.content", content, reading)
            case "assistant":
                messages.append(_assistant(f"{path}.content", content, reading))
            case "system":
                texts = [content] if isinstance(content, str) else _texts(f"{path}.content", content, reading)
                messages.append({"role": "system", "content": "\n\n".join(texts)})
            case _:
                raise wrong(f"{path}.role", role, "'user' or 'assistant'")
    if messages and messages[-1]["role"] == "assistant":
        raise reading.refusal(
            f"messages[{len(turns) - 1}]", "there an answer is never gone on with: end with the user's turn"
        )
    return messages


def _user(path: str, content: Any, reading: Reading) -> list[Message]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results: list[Message] = []
    shown: list[Part] = []  # images of results
    parts: list[Part] = []
    for here, kind, block in _blocks(path, content):
        match kind:
            case "text":
                parts.append({"type": "text", "text": _text(here, block, reading)})
            case "tool_result":
                result, images = _result(here, block, reading)
                results.append(result)
                shown += images
            case _:
                parts.append(_part(here, kind, block, reading))
    said = [*shown, *parts]
    return [*results, {"role": "user", "content": _plain(said)}] if said else results


def _part(path: str, kind: Any, block: dict[str, Any], reading: Reading) -> Part:
    """Return an image or a document as a part; a note where a chat has no part for it."""
    source = block.get("source")
    source = source if isinstance(source, dict) else {}
    if kind == "image" and source.get("type") in tuple(_SOURCES):
        return {"type": "image_url", "image_url": {"url": _image(path, block, reading)}}
    if kind == "document" and source.get("type") == "text":
        return {"type": "text", "text": text(f"{path}.source.data", source.get("data"))}
    if kind == "document" and source.get("type") == "base64":
        values = reading.read(_SOURCES["base64"], source, f"{path}.source")
        media_type, data = (text(f"{path}.source.{name}", values.get(name)) for name in ("media_type", "data"))
        title = block.get("title")
        name = title if isinstance(title, str) and title else "document"
        return {"type": "file", "file": {"filename": name, "file_data": f"data:{media_type};base64,{data}"}}
    return {"type": "text", "text": reading.leave_out_part(path, str(kind))}


def _plain(parts: list[Part]) -> Any:
    """Return one text as it is: every server takes it."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts


def _result(path: str, block: dict[str, Any], reading: Reading) -> tuple[Message, list[Part]]:
    """Return a result, and its images: a chat has them in a user's message only, which follows."""
    values = reading.read(_RESULT, block, path)
    content = values.get("content", "")
    call_id = text(f"{path}.tool_use_id", values.get("tool_use_id"))
    words, images = (content, []) if isinstance(content, str) else _seen(f"{path}.content", content, reading)
    if boolean(f"{path}.is_error", values.get("is_error", False)):
        words = f"Error: {words}"  # a chat has no other place for it
    return {"role": "tool", "tool_call_id": call_id, "content": words}, images


def _seen(path: str, content: Any, reading: Reading) -> tuple[str, list[Part]]:
    """Return the text of a result's blocks, and the images and files that it speaks of."""
    words, images = "", []
    for here, kind, block in _blocks(path, content):
        if kind == "text":
            words += _text(here, block, reading)
            continue
        part = _part(here, kind, block, reading)
        if part["type"] == "text":
            words += part["text"]
        else:
            words += f"[{kind}: see the user's next message]"
            images.append(part)
    return words, images


def _assistant(path: str, content: Any, reading: Reading) -> Message:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    parts: list[dict[str, Any]] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for here, kind, block in _blocks(path, content):
        match kind:
            case "text":
                parts.append({"type": "text", "text": _text(here, block, reading)})
            case "thinking":
                thoughts.append(text(f"{here}.thinking", reading.read(_THINKING, block, here).get("thinking")))
            case "redacted_thinking":
                reading.leave_out(here)  # nobody but Anthropic can read it
            case "tool_use":
                calls.append(_call(here, block, reading))
            case _:
                reading.leave_out(f"{here}.{kind_word(kind)}")  # of tools that Anthropic's servers run
    message: Message = {"role": "assistant", "content": _plain(parts) if parts else None if calls else ""}
    if any(thoughts):
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(path: str, block: dict[str, Any], reading: Reading) -> dict[str, Any]:
    values = reading.read(_USE, block, path)
    given = mapping(f"{path}.input", values.get("input"))
    try:
        arguments = orjson.dumps(given).decode()
    except orjson.JSONEncodeError as error:
        raise InvalidRequest(f"{path}.input is nested too deep to be put into a text", param=f"{path}.input") from error
    function = {"name": text(f"{path}.name", values.get("name")), "arguments": arguments}
    return {"id": text(f"{path}.id", values.get("id")), "type": "function", "function": function}


def _image(path: str, block: dict[str, Any], reading: Reading) -> str:
    source = mapping(f"{path}.source", reading.read(_IMAGE, block, path).get("source"))
    kind: str = source["type"]
    values = reading.read(_SOURCES[kind], source, f"{path}.source")
    checked = {name: text(f"{path}.source.{name}", values.get(name)) for name in _SOURCES[kind]}
    return checked["url"] if kind == "url" else f"data:{checked['media_type']};base64,{checked['data']}"


def _texts(path: str, content: Any, reading: Reading) -> list[str]:
    """Return the texts of blocks, and notes for what is none."""
    texts = []
    for here, kind, block in _blocks(path, content):
        texts.append(_text(here, block, reading) if kind == "text" else reading.leave_out_part(here, str(kind)))
    return texts


def _text(path: str, block: dict[str, Any], reading: Reading) -> str:
    return text(f"{path}.text", reading.read(_TEXT, block, path).get("text"))


def _blocks(path: str, content: Any) -> list[tuple[str, Any, dict[str, Any]]]:
    """Return the blocks with their paths and kinds."""
    if not isinstance(content, list):
        raise wrong(path, content, "a text or a list of blocks")
    listed = [(f"{path}[{place}]", block) for place, block in enumerate(content)]
    return [(here, mapping(here, block).get("type"), block) for here, block in listed]
