"""`input` of /v1/responses: which items there are, and what each becomes. No item that OpenAI's API has is an error.

What other tools did, the client's or a server's, is a call of a function and its result where it holds words; what
holds none is left out visibly. They come with conversations that began elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mlxd.http import field
from mlxd.http.omissions import Omissions
from mlxd.openai import response_item
from mlxd.openai.response_item import Find, Item, new_id, text_message
from mlxd.openai.response_part import part_texts
from mlxd.openai.tool_name import joined
from mlxd.protocol.errors import UnsupportedParameter
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
READ: Mapping[str, Callable[[str, Mapping[str, Any], Omissions], Item | None]] = {
    "message": response_item.parse_message,
    "function_call": response_item.parse_call,
    "custom_tool_call": response_item.parse_call,
    "function_call_output": response_item.parse_output,
    "custom_tool_call_output": response_item.parse_output,
    "shell_call": response_item.parse_shell_call,
    "apply_patch_call": response_item.parse_patch_call,
    "reasoning": response_item.parse_reasoning,
}


def parse_input(value: Any, omitted: Omissions, find: Find) -> tuple[Item, ...]:
    """Return the canonical items of `input`.

    Args:
        value: a text, which is a user's message, or a list of items.
        omitted: collects what is left out.
        find: returns a stored item by its id, for `item_reference`.

    Raises:
        UnsupportedParameter: an item that asks for another answer, or one that is left out where omissions are refused.
        InvalidRequest: a malformed item, or a reference to one that is not stored.
    """
    if isinstance(value, str):
        return (text_message("user", [{"type": "input_text", "text": value}]),)
    if not isinstance(value, list):
        raise field.wrong("input", value, "a text or a list of items")
    items = []
    for place, item in enumerate(value):
        items += _parse(f"input[{place}]", item, omitted, find)
    return tuple(items)


def _parse(path: str, item: Any, omitted: Omissions, find: Find) -> list[Item]:
    """Return what an item stands for: itself, nothing, or a call and its result."""
    kind = field.mapping(path, item).get("type")
    if kind is None:
        kind = "message" if "role" in item else "item_reference"
    field.text(f"{path}.type", kind)
    if kind == "item_reference":
        return [response_item.parse_reference(path, item, omitted, find)]
    if kind in READ:
        parsed = READ[kind](path, {**item, "type": kind}, omitted)
        return [] if parsed is None else [parsed]
    if kind in CALLS_AND_RESULTS:
        return list(CALLS_AND_RESULTS[kind](path, item, omitted))
    if kind in APPLIED:
        return []
    if kind in REFUSED:
        raise UnsupportedParameter(f"{path}.type {shown(kind)} is not supported", param=f"{path}.type")
    # A kind that is newer than this server must not end a conversation. Its name helps whoever reads the header.
    omitted.leave_out(f"{path}.{kind_word(kind)}")
    return []


def _call(path: str, item: Mapping[str, Any], name: str, arguments: Any) -> Item:
    text = arguments if isinstance(arguments, str) else field.schema(path, arguments)
    return {
        "id": item.get("id") if isinstance(item.get("id"), str) else new_id("fc"),
        "type": "function_call",
        "status": "completed",
        "call_id": _call_id(path, item),
        "name": name,
        "arguments": text,
    }


def _result(path: str, item: Mapping[str, Any], text: str) -> Item:
    call_id = _call_id(path, item)
    return {
        "id": new_id("fco"),
        "type": "function_call_output",
        "status": "completed",
        "call_id": call_id,
        "output": text,
    }


def _call_id(path: str, item: Mapping[str, Any]) -> str:
    """Return what joins a call and its result; those of OpenAI's servers have the id of the item alone."""
    return field.text(f"{path}.call_id", item.get("call_id") or item.get("id"))


def _agent_message(path: str, item: Mapping[str, Any], omitted: Omissions) -> Iterator[Item]:
    """Yield what another agent of the client said, which is for the model what a user says."""
    texts = part_texts(f"{path}.content", item.get("content"), omitted)
    yield text_message(
        "user", [{"type": "input_text", "text": text} for text in texts], response_item.item_id(path, item)
    )


def _local_shell_call(path: str, item: Mapping[str, Any], _: Omissions) -> Iterator[Item]:
    action = field.mapping(f"{path}.action", item.get("action"))
    yield _call(path, item, "local_shell", {name: value for name, value in action.items() if name != "type"})


def _text_output(path: str, item: Mapping[str, Any], omitted: Omissions) -> Iterator[Item]:
    texts = part_texts(f"{path}.output", item.get("output"), omitted)
    yield _result(path, item, "".join(texts) or str(item.get("status") or ""))


def _shell_output(path: str, item: Mapping[str, Any], _: Omissions) -> Iterator[Item]:
    chunks = []
    for place, chunk in enumerate(field.listing(f"{path}.output", item.get("output") or [])):
        here = f"{path}.output[{place}]"
        outcome = field.mapping(here, chunk).get("outcome")
        chunks += [field.string(f"{here}.{name}", chunk.get(name) or "") for name in ("stdout", "stderr")]
        if isinstance(outcome, dict):
            is_exit = outcome.get("type") == "exit"
            chunks.append(f"\n[exit code {outcome.get('exit_code')}]\n" if is_exit else "\n[timeout]\n")
    yield _result(path, item, "".join(chunks))


def _code_call(path: str, item: Mapping[str, Any], omitted: Omissions) -> Iterator[Item]:
    yield _call(path, item, "code_interpreter", {"code": item.get("code") or ""})
    logs = []
    for place, output in enumerate(field.listing(f"{path}.outputs", item.get("outputs") or [])):
        here = f"{path}.outputs[{place}]"
        if field.mapping(here, output).get("type") == "logs":
            logs.append(field.string(f"{here}.logs", output.get("logs")))
        else:
            logs.append(omitted.leave_out_media(here, "image"))
    yield _result(path, item, "".join(logs))


def _file_search_call(path: str, item: Mapping[str, Any], omitted: Omissions) -> Iterator[Item]:
    results = field.listing(f"{path}.results", item.get("results") or [])
    if not results:
        omitted.leave_out(f"{path}.file_search_call")
        return
    yield _call(path, item, "file_search", {"queries": item.get("queries") or []})
    texts = [
        field.string(
            f"{path}.results[{place}].text", field.mapping(f"{path}.results[{place}]", found).get("text") or ""
        )
        for place, found in enumerate(results)
    ]
    yield _result(path, item, "\n\n".join(texts))


def _mcp_call(path: str, item: Mapping[str, Any], _: Omissions) -> Iterator[Item]:
    server = field.text(f"{path}.server_label", item.get("server_label"))
    name = joined(server, field.text(f"{path}.name", item.get("name")))
    yield _call(path, item, name, field.string(f"{path}.arguments", item.get("arguments") or "{}"))
    output = item.get("output")
    if output is None and item.get("error") is not None:
        output = item["error"] if isinstance(item["error"], str) else field.schema(f"{path}.error", item["error"])
    yield _result(path, item, field.string(f"{path}.output", output or ""))


def _program(path: str, item: Mapping[str, Any], _: Omissions) -> Iterator[Item]:
    yield _call(path, item, "program", {"code": item.get("code") or ""})


def _program_output(path: str, item: Mapping[str, Any], _: Omissions) -> Iterator[Item]:
    yield _result(path, item, field.string(f"{path}.result", item.get("result") or ""))


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
