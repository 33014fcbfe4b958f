"""THE table of noise rules: text that clients put into prompts for their own accounting, and that no model needs.

It differs from session to session or from request to request, and stands before what does not, so that no prompt begins
as an earlier one did and the prompt cache is of no use. `mlxd/http/noise.py` removes it from what this machine answers;
a request that goes to a cloud keeps it. A date, a working directory or the state of a repository is no noise: it means
something to the model, however often it changes.

A rule names one shape that a program writes, and the place where the program writes it. It has to match that place
from its first character to its last: the same words in the middle of a text are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# Claude Code counts down a budget of its own. The count comes by itself, or as a reminder.
_TOKENS_LEFT = r"<total_tokens>[0-9]{1,20} tokens left</total_tokens>"
_REMINDER = rf"<system-reminder>\s{{0,4}}{_TOKENS_LEFT}\s{{0,4}}</system-reminder>"


class Place(Enum):
    """Where in the messages of a role noise is looked for; a message that is one text has one block."""

    FIRST_LINE = "the first line of the prompt"
    LAST_LINE = "the last line of a block"
    LATER_BLOCK = "a whole block after another one of its message"  # a user who sends one text is left alone


@dataclass(frozen=True, slots=True)
class Match:
    """One place where a rule finds its noise.

    Attributes:
        role: whose messages: system (also what an API calls developer or instructions) or user.
        place: what is removed, if it matches.
        pattern: a regular expression for all of it but the white space around. Its repetitions are bounded.
    """

    role: str
    place: Place
    pattern: str


@dataclass(frozen=True, slots=True)
class NoiseRule:
    """One kind of noise.

    Attributes:
        name: how settings and the request log call it.
        removes: what it removes, in one sentence.
        clients: the programs that write it.
        matches: the places where it is found.
    """

    name: str
    removes: str
    clients: tuple[str, ...]
    matches: tuple[Match, ...]


RULES = (
    NoiseRule(
        "claude-billing-line",
        "Claude Code's billing line before the system prompt.",
        ("Claude Code",),
        (
            Match(
                "system",
                Place.FIRST_LINE,
                r"x-anthropic-billing-header:(?: [a-z_]{1,40}=[^\s;]{0,200};?){1,20}",
            ),
        ),
    ),
    NoiseRule(
        "claude-tokens-left",
        "Claude Code's notes of how many tokens are left.",
        ("Claude Code",),
        (
            Match("system", Place.LAST_LINE, _TOKENS_LEFT),
            Match("user", Place.LATER_BLOCK, rf"{_TOKENS_LEFT}|{_REMINDER}"),
        ),
    ),
)
RULE_NAMES = tuple(rule.name for rule in RULES)
