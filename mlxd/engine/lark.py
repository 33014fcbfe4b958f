"""Writes grammars in llguidance's dialect of Lark, for the tokens of one model. Pure: text in, text out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# A model that may choose writes white space without end.
_COMPACT = {"x-guidance": {"whitespace_flexible": False}}
EMPTY = '""'
_SIGNS = re.compile(r"[!#$%&()*+,\-./;?@\[\\\]^`{|}~]")  # those that may be escaped


class Unenforceable(ValueError):
    """What a grammar cannot bind an answer to; the message says what and why."""


class Lark:
    """Collects rules. What its methods return stands in the body of another rule."""

    def __init__(self, tokenizer: Any) -> None:
        """Take mlx-lm's `TokenizerWrapper`: a tag that is one token in it is one in the grammar."""
        self._added: dict[str, int] = dict(tokenizer.get_added_vocab())
        longest_first = sorted(self._added, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        self._rules: list[str] = []

    def text(self, start: str) -> str:
        """Return the grammar whose first rule has the body *start*."""
        return "\n".join([f"start: {start}", *self._rules])

    def rule(self, body: str) -> str:
        """Return the name of a rule."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def terminal(self, body: str) -> str:
        """Return the name of a terminal: one regular expression, of literals, expressions and other terminals."""
        name = f"T{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def json(self, schema: Mapping[str, Any]) -> str:
        """Return a document of *schema*."""
        return self.rule(f"%json {json.dumps({**schema, **_COMPACT})}")

    def choice(self, bodies: Iterable[str]) -> str:
        """Return one of *bodies*."""
        return f"({' | '.join(bodies)})"

    def tag(self, text: str) -> str:
        """Return *text*, the tokens in it that were added for tags as tokens."""
        parts = [part for part in (self._split.split(text) if self._split else [text]) if part]
        return " ".join(f"<[{self._added[part]}]>" if part in self._added else literal(part) for part in parts) or EMPTY

    def is_token(self, text: str) -> bool:
        """Whether *text* begins with a token that was added for a tag; free text never holds one."""
        return any(text.startswith(token) for token in self._added)

    def letters(self, text: str) -> str:
        """Return the beginning of *text* up to the first token in it that was added for a tag."""
        return self._split.split(text, maxsplit=1)[0] if self._split else text

    def until(self, body: str, end: str, *, without: Sequence[str] = ()) -> str:
        """Return a text of the regular expression *body* that holds neither *end* nor *without*, and *end* after it."""
        # The white space around a tag may stand in the text too.
        free = " & ".join([body, *(f"~/(?s:.*){regex(text)}(?s:.*)/" for text in (end.strip(), *without) if text)])
        before, _, after = end.partition(end.strip())
        if self.is_token(end.strip()):
            terminal = self.terminal(f"({free}) {literal(before)}" if before else free)
            return f"{terminal} {self.tag(end.strip())}" + (f" {literal(after)}" if after else "")
        return self.terminal(f"({free}) {literal(end)}")

    def members(self, items: Sequence[tuple[str, bool]], separator: str) -> str:
        """Return the bodies in *items* in their order, *separator* between them; False: it may be left out."""
        following = first = EMPTY
        for body, is_required in reversed(items):
            here = f"{body} {following}"
            apart = f"{separator} {here}" if separator else here
            following, first = (
                self.rule(apart if is_required else f"{apart} | {following}"),
                self.rule(here if is_required else f"{here} | {first}"),
            )
        return first


def literal(text: str) -> str:
    """Return *text* as a literal."""
    return json.dumps(text)


def regex(text: str) -> str:
    """Return *text* as the part of a regular expression that matches it."""
    return _SIGNS.sub(r"\\\g<0>", text).replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
