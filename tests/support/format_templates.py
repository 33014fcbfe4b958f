"""Chat templates with the markup of models whose calls mlx-lm does not read. Short, and written for tests.

The markup and what a template looks at are those of the models; the words are not.
"""

from __future__ import annotations

from typing import NamedTuple

_BEGIN, _CALLS_END = "<\uff5ctool▁calls▁begin\uff5c>", "<\uff5ctool▁calls▁end\uff5c>"
_CALL, _SEPARATOR, _CALL_END = "<\uff5ctool▁call▁begin\uff5c>", "<\uff5ctool▁sep\uff5c>", "<\uff5ctool▁call▁end\uff5c>"
DEEPSEEK_MARKUP = (_BEGIN, _CALLS_END, _CALL, _SEPARATOR, _CALL_END, "<think>", "</think>")
DSML = "\uff5cDSML\uff5c"


class FormatTemplate(NamedTuple):
    """A template, and the tokens beside letters that its model has."""

    template: str
    markup: tuple[str, ...]


def _deepseek(separator: str, before: str, after: str) -> str:
    """Return a template that knows no tools, and writes calls only where there is no content, as those of DeepSeek."""
    return (
        "{% for message in messages %}{% if message.role == 'assistant' and message.content is none %}"
        f"{{% for tool in message.tool_calls %}}{_BEGIN}{_CALL}{{{{ {separator} }}}}{_SEPARATOR}"
        f"{before}{{{{ tool.function.arguments }}}}{after}{_CALL_END}{{% endfor %}}{_CALLS_END}"
        "{% elif message.role == 'tool' %}<\uff5ctool▁output▁begin\uff5c>{{ message.content }}"
        "<\uff5ctool▁output▁end\uff5c>"
        "{% else %}{{ '<\uff5c' + message.role + '\uff5c>' + message.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<\uff5cassistant\uff5c>{% endif %}"
    )


_TURNS = "{% for message in messages %}{{ '[' + message.role + ']' + message.content }}{% endfor %}"
_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"

FORMAT_TEMPLATES = {
    "deepseek_v3": FormatTemplate(
        _deepseek("'function'", "{{ tool.function.name }}\n```json\n", "\n```"), DEEPSEEK_MARKUP
    ),
    "deepseek_v31": FormatTemplate(_deepseek("tool.function.name", "", ""), DEEPSEEK_MARKUP),
    "deepseek_v32": FormatTemplate(_TURNS, (DSML, "<think>", "</think>")),
    "seed": FormatTemplate(
        _TOOLS + "{% if false %}<seed:tool_call>{% endif %}" + _TURNS,
        ("<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"),
    ),
    "phi4": FormatTemplate(
        "{% for message in messages %}{% if message.role == 'system' and 'tools' in message %}"
        "{{ '<|system|>' + message.content + '<|tool|>' + message.tools + '<|/tool|><|end|>' }}"
        "{% else %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ("<|tool_call|>", "<|/tool_call|>", "<|tool|>", "<|/tool|>", "<|end|>"),
    ),
    "granite": FormatTemplate(
        _TOOLS + "{% for message in messages %}<|start_of_role|>{{ message.role }}{{ message.content }}{% endfor %}",
        ("<|tool_call|>", "<|start_of_role|>"),
    ),
    "nemotron": FormatTemplate(_TOOLS + _TURNS + "{% if false %}<TOOLCALL>{% endif %}", ()),
    "command": FormatTemplate(
        _TOOLS + "{% for message in messages %}{% if message.tool_calls %}"
        "<|START_THINKING|>{{ message.tool_plan }}<|END_THINKING|><|START_ACTION|>[{% for call in message.tool_calls %}"
        '{"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ call.function.name }}", '
        '"parameters": {{ call.function.arguments | tojson }}}{% endfor %}]<|END_ACTION|>'
        "{% else %}{{ '[' + message.role + ']' + message.content }}{% endif %}{% endfor %}",
        (
            "<|START_THINKING|>",
            "<|END_THINKING|>",
            "<|START_ACTION|>",
            "<|END_ACTION|>",
            "<|START_RESPONSE|>",
            "<|END_RESPONSE|>",
        ),
    ),
    "json_tools": FormatTemplate(
        '{% if tools %}{{ tools | tojson }}<tool_call>{"name": NAME, "arguments": OBJECT}</tool_call>{% endif %}'
        + _TURNS,
        ("<|tool_call|>", "<|start_of_role|>"),
    ),
    "magistral": FormatTemplate(_TURNS + "{% if false %}[THINK]{% endif %}", ("[THINK]", "[/THINK]")),
}
