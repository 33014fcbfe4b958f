"""An answer as it is printed: the content to stdout, what the model thinks aloud and the figures to stderr."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from mlxctl import output
from mlxctl.call import Call
from mlxctl.completion import Answer, Server, stream_chat

# What a terminal would act upon instead of showing it; line ends and tabs are text.
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")


def print_answer(call: Call, server: Server, body: Mapping[str, Any], answer: Answer) -> None:
    """Ask, print what comes as it comes, and fill *answer*; the figures follow.

    Raises:
        ControlError: as `stream_chat`; what had come is printed, and is in *answer*.
    """
    if call.options.json:
        stream_chat(server, body, answer)
        return
    printer = _Printer(shows_thoughts=not call.options.quiet)
    try:
        stream_chat(server, body, answer, on_content=printer.write, on_reasoning=printer.think)
    finally:
        printer.end()
    call.note(format_figures(answer))


def format_figures(answer: Answer) -> str:
    """Return usage and times: `[tiny: 36 prompt tokens (0 cached), 8 tokens, stop; first after 0.31 s, 9 tokens/s]`."""
    usage = answer.usage
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    text = f"{answer.model}: {usage.get('prompt_tokens', '?')} prompt tokens ({cached} cached)"
    text += f", {usage.get('completion_tokens', '?')} tokens, {answer.finish_reason}"
    if answer.ttft_s is not None:
        text += f"; first after {answer.ttft_s:.2f} s"
    if answer.tokens_per_s is not None:
        text += f", {answer.tokens_per_s:.1f} tokens/s"
    return f"[{text}]"


class _Printer:
    """Keeps thoughts and content on lines of their own."""

    def __init__(self, *, shows_thoughts: bool) -> None:
        self._shows_thoughts = shows_thoughts
        self._is_terminal = sys.stdout.isatty()
        self._thinks = False
        self._has_content = False

    def write(self, text: str) -> None:
        """Print a piece of the content."""
        self._end_thought()
        self._has_content = True
        sys.stdout.write(text.translate(_CONTROLS) if self._is_terminal else text)
        sys.stdout.flush()

    def think(self, text: str) -> None:
        """Print a piece of what the model thinks aloud."""
        if not self._shows_thoughts:
            return
        if not self._thinks:
            sys.stderr.write("\n[thinking]\n" if self._has_content else "[thinking]\n")
            self._thinks = True
        sys.stderr.write(text.translate(_CONTROLS))
        sys.stderr.flush()

    def end(self) -> None:
        """End the last line."""
        self._end_thought()
        if self._has_content:
            output.print_text("")

    def _end_thought(self) -> None:
        if self._thinks:
            sys.stderr.write("\n[end of thinking]\n")
            sys.stderr.flush()
            self._thinks = False
