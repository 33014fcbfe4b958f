"""What a body of /v1/responses may hold and what each does: fields, kinds of tools and of items. For FIELDS.md."""

from __future__ import annotations

from mlxd.http import field
from mlxd.http.table import Omitted, Refused, Table, Works
from mlxd.openai.response_history import APPLIED, CALLS_AND_RESULTS, READ, WITHOUT_WORDS
from mlxd.openai.response_schema import REASONING, RESPONSE, STREAM_OPTIONS, TEXT
from mlxd.openai.response_tool import OFFERED

_TOOLS = {
    "custom": "a function with one text; its grammar is told, a regular expression binds calls that are required",
    "namespace": "a function for each of its tools, NAMESPACE__NAME",
    "shell": "a function, where the environment is local",
    "apply_patch": "a function",
}
_ITEMS = {
    **dict.fromkeys(CALLS_AND_RESULTS, "a call of a function, its result, or both"),
    "agent_message": "what a user says",
    "reasoning": "what another server encrypted is left out",
}
RESPONSE_FIELDS: Table = {
    **RESPONSE,
    **{f"reasoning.{name}": treatment for name, treatment in REASONING.items()},
    **{f"text.{name}": treatment for name, treatment in TEXT.items()},
    **{f"stream_options.{name}": treatment for name, treatment in STREAM_OPTIONS.items()},
    **{f"tools[] {kind}": Works(field.anything, _TOOLS.get(kind, "")) for kind in OFFERED},
    "tools[] of any other type": Omitted(),
    **{f"input[] {kind}": Works(field.anything, _ITEMS.get(kind, "")) for kind in (*READ, *CALLS_AND_RESULTS)},
    **{f"input[] {kind}": Works(field.anything) for kind in APPLIED},
    "input[] item_reference": Works(field.anything),
    **dict.fromkeys((f"input[] {kind}" for kind in WITHOUT_WORDS), Omitted()),
    "input[] compaction_trigger": Refused(),
}
