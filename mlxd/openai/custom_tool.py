"""A custom tool, whose input is one text: what it is for the model, and what a call of it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from mlxd.http import field
from mlxd.http.omissions import Omissions

CUSTOM_INPUT = "input"  # the one parameter of what a custom tool is for the model


def custom_function(path: str, tool: Mapping[str, Any], omitted: Omissions) -> dict[str, Any]:
    """Return the function that a custom tool is for the model.

    A grammar is told to the model. One that is a regular expression binds calls that are required as well.
    """
    about = "The whole input, as it is."
    schema: dict[str, Any] = {"type": "string"}
    given = tool.get("format")
    if given is not None and field.mapping(f"{path}.format", given).get("type") == "grammar":
        grammar = field.mapping(f"{path}.format.grammar", given.get("grammar", given))  # chat has it one level deeper
        syntax = field.word("lark", "regex")(f"{path}.format.syntax", grammar.get("syntax"))
        definition = field.string(f"{path}.format.definition", grammar.get("definition"))
        kind = "regular expression" if syntax == "regex" else "Lark grammar"
        about = f"{about} It must match this {kind}:\n{definition}"
        if syntax == "regex":
            schema["pattern"] = f"^(?:{definition})$"
        omitted.leave_out(f"{path}.format", "is not enforced")
    elif given is not None and given.get("type") != "text":
        omitted.leave_out(f"{path}.format")
    properties = {CUSTOM_INPUT: {**schema, "description": about}}
    parameters = {"type": "object", "properties": properties, "required": [CUSTOM_INPUT], "additionalProperties": False}
    return {"name": tool.get("name"), "description": tool.get("description"), "parameters": parameters}


def custom_input(arguments: str) -> str:
    """Return the input of a custom tool: of the one parameter, or of the only text, or the arguments as they are."""
    try:
        given = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return arguments
    if isinstance(given, dict):
        texts = [given[CUSTOM_INPUT]] if CUSTOM_INPUT in given else list(given.values())
        if len(texts) == 1 and isinstance(texts[0], str):
            return texts[0]
    return arguments
