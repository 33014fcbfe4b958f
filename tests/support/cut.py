"""Answers as models write them, whole and broken, and ways to cut them into pieces."""

from __future__ import annotations

import random

from hypothesis import strategies as st

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "Grüße 😀 </b>"}}\n</tool_call>'
_FRAGMENTS = (
    CALL, CALL, "<think>", "</think>", "<tool_call>", "</tool_call>", '<tool_call>{"name": 5}</tool_call>',
    '<tool_call>{"name": "f"}</tool_call>', '<tool_call>{"name": "f", "arg', "<tool_", "<thi", "</", "<", " ", "\n",
    "\n\n", "END", "EN", "😀", "👩‍👩‍👧", "e\u0301", "日本", "so ", "tool", '{"a": 1}', "}",
)  # fmt: skip
ANSWERS = st.lists(st.sampled_from(_FRAGMENTS) | st.text(max_size=4), min_size=1, max_size=8).map("".join)


def random_answer(random: random.Random) -> str:
    """Return an answer of the same kind as `ANSWERS`."""
    return "".join(random.choices(_FRAGMENTS, k=random.randint(1, 8)))


def cut(text: str, seed: int) -> list[str]:
    """Return *text* in pieces; equal seeds cut equally, and some pieces are empty."""
    places = random.Random(seed)
    borders = sorted(places.choices(range(len(text) + 1), k=places.randint(0, len(text) + 2)))
    return [text[start:stop] for start, stop in zip([0, *borders], [*borders, len(text)], strict=True)]
