"""A custom tool, whose input is one text: what it is for the model, and what a call of it says."""

from __future__ import annotations

from typing import Any, Literal

import orjson

from mlxd.http.omissions import Omissions
from mlxd.http.schema import Object, checked

CUSTOM_INPUT = "input"  # the one parameter of what a custom tool is for the model


def custom_parameters(path: str, given: Object | None, omissions: Omissions) -> dict[str, Any]:
    """Return the parameters of the function that a custom tool with the `format` *given* is for the model.

    A grammar is told to the model. One that is a regular expression binds calls that are required as well.
    """
    about = "The whole input, as it is."
    schema: dict[str, Any] = {"type": "string"}
    if given is not None and given.get("type") == "grammar":
        grammar = checked(Object, f"{path}.grammar", given.get("grammar", given))  # chat has it one level deeper
        syntax = checked(Literal["lark", "regex"], f"{path}.syntax", grammar.get("syntax"))
        definition = checked(str, f"{path}.definition", grammar.get("definition"))
        kind = "regular expression" if syntax == "regex" else "Lark grammar"
        about = f"{about} It must match this {kind}:\n{definition}"
        if syntax == "regex":
            schema["pattern"] = f"^(?:{definition})$"
        omissions.leave_out(path, "is not enforced")
    elif given is not None and given.get("type") != "text":
        omissions.leave_out(path)
    properties = {CUSTOM_INPUT: {**schema, "description": about}}
    return {"type": "object", "properties": properties, "required": [CUSTOM_INPUT], "additionalProperties": False}


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
