"""Choose checkpoints: the places where later prompts are expected to leave the prompt of a chat.

Only the template knows where it puts a content, so it is asked: the messages are rendered once more with marks in the
contents, and where the marks come out are the places. The second text is thrown away. A template that does something
else because of the marks only hides places; it never changes the prompt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

# For private use, and beyond what the symbols of fonts take.
MARK = "\U0010fff1"
# A template may copy a content more than once. Each checkpoint may cost a state of the model.
_MOST_PLACES = 8
# Fewer tokens are computed again sooner than kept. What a template puts between two contents is shorter.
_LEAST_APART = 8

_INSTRUCTING = {"system", "developer"}


def marked_messages(messages: Sequence[Mapping[str, Any]], *, continues: bool) -> dict[int, dict[str, Any]]:
    """Return the messages that a rendering with marks has in place of those at their indexes.

    Marked are the beginnings of the first message, of the first one after the instructions (everything that
    conversations share comes before it) and of the last question (which is edited), and the ends of the message before
    the last question (some templates write tools or instructions next to the last question, wherever it is), of the
    last question (a template may drop the reasoning of what follows it) and of the last message.

    Args:
        messages: of the chat.
        continues: the last message is the beginning of the answer, and grows.
    """
    roles = [message.get("role") for message in (messages[:-1] if continues else messages)]
    if not roles:
        return {}
    starts, ends = {0}, {len(roles) - 1}
    first = next((index for index, role in enumerate(roles) if role not in _INSTRUCTING), 0)
    starts.add(first)
    if "user" in roles:
        question = len(roles) - 1 - roles[::-1].index("user")
        starts.add(question)
        ends.add(question)
        if question > first:
            ends.add(question - 1)
    marked = {}
    for index in sorted(starts | ends):
        content = messages[index].get("content")
        # Beside calls, templates often look whether there is a content at all.
        if isinstance(content, str) and (content.strip() or roles[index] != "assistant"):
            text = _marked(content, start=index in starts, end=index in ends)
            marked[index] = {**messages[index], "content": text}
    return marked


def mark_start(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the message with a mark at the beginning of its content, where it has one."""
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        return message
    return {**message, "content": _marked(content, start=True, end=False)}


def _marked(content: str, *, start: bool, end: bool) -> str:
    """Put marks next to the first and the last character that no template trims."""
    inner = content.strip()
    before = content[: len(content) - len(content.lstrip())]
    after = content[len(before) + len(inner) :]
    return f"{before}{MARK * (start and not inner.startswith(MARK))}{inner}{MARK * end}{after}"


def places(text: str, marked_text: str) -> list[int]:
    """Return where the marks of *marked_text* are in *text*, in characters, ascending.

    A place counts where everything before its mark, or everything after it, is the same in both texts.
    """
    pieces = marked_text.split(MARK)
    if MARK in text or len(pieces) > _MOST_PLACES + 1:
        return []
    found = set()
    place = 0
    for piece in pieces[:-1]:
        if not text.startswith(piece, place):
            break
        place += len(piece)
        found.add(place)
    place = len(text)
    for piece in pieces[:0:-1]:
        if not text.endswith(piece, 0, place):
            break
        place -= len(piece)
        found.add(place)
    return sorted(found)


def before_thoughts(text: str, found: list[int], think_start: str) -> list[int]:
    """Return the places with the last one moved on to where the template opens the thoughts of the answer.

    The next prompt has the beginning of the answer too, and what was thought is left out there.
    """
    opened = text.rfind(think_start, found[-1]) if found else -1
    return found if opened < 0 else [*found[:-1], opened]


def positions(encoding: Any, text_places: Sequence[int]) -> tuple[int, ...]:
    """Return the checkpoints for places in a text, in tokens, without those that are hardly apart.

    The last token before a place is left to what comes after it: before other text, it may become another token.

    Args:
        encoding: what a tokenizer of the `tokenizers` library made of the text.
        text_places: in characters, ascending.
    """
    found = [0]
    for place in text_places:
        # Halving: `char_to_token` reads all tokens up to the place, 5 ms of 200,000.
        after = bisect_right(range(len(encoding)), place, key=lambda token: _end(encoding, token))
        if after - 1 - found[-1] >= _LEAST_APART:
            found.append(after - 1)
    return tuple(found[1:])


def _end(encoding: Any, token: int) -> int:
    span = encoding.token_to_chars(token)  # none of a special token that is not in the text
    return 0 if span is None else int(span[1])
