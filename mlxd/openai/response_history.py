"""`input` of /v1/responses: which items there are, and what each becomes. No item that OpenAI's API has is an error.

What other tools did, the client's or a server's, is a call of a function and its result where it holds words; what
holds none is left out visibly. They come with conversations that began elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from mlxd.http.omissions import Omissions
from mlxd.http.schema import Object, Text, checked, dumped, read, wrong
from mlxd.openai.content import texts
from mlxd.openai.response_item import READ, Find, Item, new_id, parse_item, text_message
from mlxd.openai.tool_name import joined
from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter
from mlxd.protocol.quote import kind_word, shown

# Applied before the items are read (`response_schema.py`).
APPLIED = frozenset({"additional_tools", "configuration_update"})
WITHOUT_WORDS = frozenset(
    [
        *("compaction", "compaction_summary", "context_compaction", "computer_call", "computer_call_output"),
        *("ghost_snapshot", "image_generation_call", "mcp_approval_request", "mcp_approval_response"),
        *("mcp_list_tools", "tool_search_call", "tool_search_output", "web_search_call"),
    ]
)
REFUSED = frozenset({"compaction_trigger"})  # it asks for a summary in place of an answer


class _Reference(msgspec.Struct, kw_only=True):
    type: str = ""
    id: Text


def parse_input(value: Any, omissions: Omissions, find: Find) -> tuple[Item, ...]:
    """Return the canonical items of `input`.

    Args:
        value: a text, which is a user's message, or a list of items.
        omissions: collects what is left out.
        find: returns a stored item by its id, for `item_reference`.

    Raises:
        UnsupportedParameter: an item that asks for another answer, or one that is left out where omissions are refused.
        InvalidRequest: a malformed item, or a reference to one that is not stored.
    """
    if isinstance(value, str):
        return (text_message("user", [value]),)
    if not isinstance(value, list):
        raise wrong("input", value, "a text or a list of items")
    items = []
    for place, item in enumerate(value):
        items += _parse(f"input[{place}]", item, omissions, find)
    return tuple(items)


def _parse(path: str, item: Any, omissions: Omissions, find: Find) -> list[Item]:
    """Return what an item stands for: itself, nothing, or a call and its result."""
    kind = checked(Object, path, item).get("type")
    if kind is None:
        kind = "message" if "role" in item else "item_reference"
    checked(Text, f"{path}.type", kind)
    if kind == "item_reference":
        return [_referred(path, item, omissions, find)]
    if kind in READ:
        parsed = parse_item(path, {**item, "type": kind}, omissions)
        return [] if parsed is None else [parsed]
    if kind in CALLS_AND_RESULTS:
        return list(CALLS_AND_RESULTS[kind](path, item, omissions))
    if kind in APPLIED:
        return []
    if kind in REFUSED:
        raise UnsupportedParameter(f"{path}.type {shown(kind)} is not supported", param=f"{path}.type")
    # A kind that is newer than this server must not end a conversation. Its name helps whoever reads the header.
    omissions.leave_out(f"{path}.{kind_word(kind)}")
    return []


def _referred(path: str, item: Mapping[str, Any], omissions: Omissions, find: Find) -> Item:
    found = find(read(_Reference, item, omissions, path).id)
    if found is None:
        message = f"{path}.id names an item that is not stored, or once more; send the item itself"
        raise InvalidRequest(message, param=path)
    return found


def _call(path: str, item: Mapping[str, Any], name: str, arguments: Any) -> Item:
    text = arguments if isinstance(arguments, str) else dumped(path, arguments)
    item_id = item.get("id") if isinstance(item.get("id"), str) else new_id("fc")
    call = {"id": item_id, "type": "function_call", "status": "completed", "call_id": _call_id(path, item)}
    return {**call, "name": name, "arguments": text}


def _result(path: str, item: Mapping[str, Any], text: str) -> Item:
    result = {"id": new_id("fco"), "type": "function_call_output", "status": "completed"}
    return {**result, "call_id": _call_id(path, item), "output": text}


def _call_id(path: str, item: Mapping[str, Any]) -> str:
    """Return what joins a call and its result; those of OpenAI's servers have the id of the item alone."""
    call_id: str = checked(Text, f"{path}.call_id", item.get("call_id") or item.get("id"))
    return call_id


def _agent_message(path: str, item: Mapping[str, Any], omissions: Omissions) -> Iterator[Item]:
    """Yield what another agent of the client said, which is for the model what a user says."""
    item_id = None if item.get("id") is None else checked(Text, f"{path}.id", item["id"])
    yield text_message("user", texts(f"{path}.content", item.get("content"), omissions), item_id)


def _local_shell_call(path: str, item: Mapping[str, Any], _: Omissions) -> Iterator[Item]:
    action = checked(Object, f"{path}.action", item.get("action"))
    yield _call(path, item, "local_shell", {name: value for name, value in action.items() if name != "type"})


def _text_output(path: str, item: Mapping[str, Any], omissions: Omissions) -> Iterator[Item]:
    said = texts(f"{path}.output", item.get("output"), omissions)
    yield _result(path, item, "".join(said) or str(item.get("status") or ""))


def _shell_output(path: str, item: Mapping[str, Any], _: Omissions) -> Iterator[Item]:
    chunks = []
    for place, chunk in enumerate(checked(list, f"{path}.output", item.get("output") or [])):
        here = f"{path}.output[{place}]"
        outcome = checked(Object, here, chunk).get("outcome")
        chunks += [checked(str, f"{here}.{name}", chunk.get(name) or "") for name in ("stdout", "stderr")]
        if isinstance(outcome, dict):
            is_exit = outcome.get("type") == "exit"
            chunks.append(f"\n[exit code {outcome.get('exit_code')}]\n" if is_exit else "\n[timeout]\n")
    yield _result(path, item, "".join(chunks))


def _code_call(path: str, item: Mapping[str, Any], omissions: Omissions) -> Iterator[Item]:
    yield _call(path, item, "code_interpreter", {"code": item.get("code") or ""})
    logs = []
    for place, output in enumerate(checked(list, f"{path}.outputs", item.get("outputs") or [])):
        here = f"{path}.outputs[{place}]"
        if checked(Object, here, output).get("type") == "logs":
            logs.append(checked(str, f"{here}.logs", output.get("logs")))
        else:
            logs.append(omissions.leave_out_media(here, "image"))
    yield _result(path, item, "".join(logs))


def _file_search_call(path: str, item: Mapping[str, Any], omissions: Omissions) -> Iterator[Item]:
    results = checked(list, f"{path}.results", item.get("results") or [])
    if not results:
        omissions.leave_out(f"{path}.file_search_call")
        return
    yield _call(path, item, "file_search", {"queries": item.get("queries") or []})
    texts = [
        checked(
            str, f"{path}.results[{place}].text", checked(Object, f"{path}.results[{place}]", found).get("text") or ""
        )
        for place, found in enumerate(results)
    ]
    yield _result(path, item, "\n\n".join(texts))


def _mcp_call(path: str, item: Mapping[str, Any], _: Omissions) -> Iterator[Item]:
    server = checked(Text, f"{path}.server_label", item.get("server_label"))
    name = joined(server, checked(Text, f"{path}.name", item.get("name")))
    yield _call(path, item, name, checked(str, f"{path}.arguments", item.get("arguments") or "{}"))
    output = item.get("output")
    if output is None and item.get("error") is not None:
        output = item["error"] if isinstance(item["error"], str) else dumped(f"{path}.error", item["error"])
    yield _result(path, item, checked(str, f"{path}.output", output or ""))


def _program(path: str, item: Mapping[str, Any], _: Omissions) -> Iterator[Item]:
    yield _call(path, item, "program", {"code": item.get("code") or ""})


def _program_output(path: str, item: Mapping[str, Any], _: Omissions) -> Iterator[Item]:
    yield _result(path, item, checked(str, f"{path}.result", item.get("result") or ""))


CALLS_AND_RESULTS: Mapping[str, Callable[[str, Mapping[str, Any], Omissions], Iterator[Item]]] = {
    "agent_message": _agent_message,
    "apply_patch_call_output": _text_output,
    "code_interpreter_call": _code_call,
    "file_search_call": _file_search_call,
    "local_shell_call": _local_shell_call,
    "local_shell_call_output": _text_output,
    "mcp_call": _mcp_call,
    "program": _program,
    "program_output": _program_output,
    "shell_call_output": _shell_output,
}
