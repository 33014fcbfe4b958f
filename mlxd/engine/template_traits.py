"""Learn what a chat template supports by rendering a few small chats with it, never by guessing from its words.

Clients cannot know it: one template raises on a second system message, another drops it without a word, a third moves
it to the front. `PROBES` is what is rendered, once for each template, and `learn` draws the conclusions. How much
a client wants a model to think becomes what its template knows (`choose_reasoning`). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Words for how much to think, ascending: those of OpenAI's API and of Anthropic's.
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_OFF = "none"
# What templates call the switch, the usual one first.
_SWITCHES = ("enable_thinking", "thinking", "reasoning", "think")
# And how much.
_EFFORT_VARIABLES = ("reasoning_effort", "reasoning_strength")
# Without a word of its own: those of the models that think by effort.
_USUAL_EFFORTS = ("low", "medium", "high")
# No template has them.
_FIRST, _SECOND, _ANSWER, _RULE, _LATE, _RESULT, _UNKNOWN = (
    f"qzq{word}" for word in ("first", "second", "answer", "rule", "late", "result", "unknown")
)
_THINKING_ON = {"enable_thinking": True, "thinking": True}


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """What one template takes. The defaults are for one of which nothing could be learned: it gets all as it comes."""

    takes_system: bool = True
    takes_system_alone: bool = True  # without any question
    takes_late_system: bool = True  # at its place, after other messages
    takes_users_in_a_row: bool = True
    takes_user_after_tool: bool = True
    efforts: tuple[str, ...] = EFFORTS  # of `EFFORTS`, ascending; none: it has no variable for them
    effort_variable: str = _EFFORT_VARIABLES[0]
    thinking: str | None = "enable_thinking"  # the variable that switches thinking
    can_stop_thinking: bool = True


@dataclass(frozen=True, slots=True)
class ProbeChat:
    """A small chat to render."""

    messages: tuple[Mapping[str, Any], ...]
    variables: Mapping[str, Any]


def _user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


# Mistral's ids have nine characters.
_CALL = {"id": "qzqcall01", "type": "function", "function": {"name": "qzqname", "arguments": {"qzqkey": "a"}}}
_TOOL_TURN = (
    _user(_FIRST),
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "qzqcall01", "name": "qzqname", "content": _RESULT},
)
_CHATS: dict[str, tuple[Mapping[str, Any], ...]] = {
    "user": (_user(_FIRST),),
    "system": (_system(_RULE), _user(_FIRST)),
    "system alone": (_system(_RULE),),
    "late system": (
        _system(_RULE),
        _user(_FIRST),
        {"role": "assistant", "content": _ANSWER},
        _system(_LATE),
        _user(_SECOND),
    ),
    "last system": (_system(_RULE), _user(_FIRST), _system(_LATE)),
    "users": (_user(_FIRST), _user(_SECOND)),
    "tool": _TOOL_TURN,
    "user after tool": (*_TOOL_TURN, _user(_SECOND)),
}
_QUESTION = _CHATS["user"]
PROBES: dict[str, ProbeChat] = {
    **{name: ProbeChat(messages, {}) for name, messages in _CHATS.items()},
    **{f"{name}={switch}": ProbeChat(_QUESTION, {name: switch}) for name in _SWITCHES for switch in (True, False)},
    "no effort": ProbeChat(_QUESTION, _THINKING_ON),
    **{
        f"{name}={word}": ProbeChat(_QUESTION, {**_THINKING_ON, name: word})
        for name in _EFFORT_VARIABLES
        for word in (*EFFORTS, _UNKNOWN)
    },
}

Rendered = Mapping[str, str | None]


def learn(template: str, rendered: Rendered) -> TemplateTraits:
    """Return what a template takes.

    Args:
        template: its text.
        rendered: name of a probe → what the template made of it; None where it raised.
    """
    if not _has_in_order(rendered["user"], _FIRST):
        return TemplateTraits()  # it refuses everything, or shows contents as no text
    thinking, can_stop = _learn_switch(rendered)
    found = ((name, _learn_efforts(template, name, rendered)) for name in _EFFORT_VARIABLES)
    variable, efforts = next((pair for pair in found if pair[1]), (_EFFORT_VARIABLES[0], ()))
    is_late_taken = _has_in_order(rendered["late system"], _FIRST, _ANSWER, _LATE, _SECOND)
    return TemplateTraits(
        takes_system=_has_in_order(rendered["system"], _RULE),
        takes_system_alone=_has_in_order(rendered["system alone"], _RULE),
        takes_late_system=is_late_taken and _has_in_order(rendered["last system"], _FIRST, _LATE),
        takes_users_in_a_row=_has_in_order(rendered["users"], _FIRST, _SECOND),
        takes_user_after_tool=(
            not _has_in_order(rendered["tool"], _RESULT) or _has_in_order(rendered["user after tool"], _RESULT, _SECOND)
        ),
        efforts=efforts,
        effort_variable=variable,
        thinking=thinking,
        can_stop_thinking=can_stop,
    )


def _has_in_order(text: str | None, *words: str) -> bool:
    place = 0
    for word in words:
        place = -1 if text is None else text.find(word, place)
        if place < 0:
            return False
    return True


def _learn_switch(rendered: Rendered) -> tuple[str | None, bool]:
    """Return the variable that switches thinking, and whether it can be switched off."""
    for name in _SWITCHES:
        on, off = rendered[f"{name}=True"], rendered[f"{name}=False"]
        if on is not None and on != off:
            return name, off is not None
    return None, False


def _learn_efforts(template: str, variable: str, rendered: Rendered) -> tuple[str, ...]:
    """Return the words that a variable of the template may have; none where it changes nothing."""
    base, unknown = rendered["no effort"], rendered[f"{variable}={_UNKNOWN}"]
    texts = {word: rendered[f"{variable}={word}"] for word in EFFORTS}
    if all(text == base for text in texts.values()):
        return ()
    taken = [word for word, text in texts.items() if text is not None]
    if unknown is None:  # the others are refused
        return tuple(taken)
    named = [word for word in taken if re.search(rf"""(["']){word}\1""", template)]
    if _UNKNOWN in unknown:
        # It prints whatever it is given. A single word is its default and not all that the model was trained for.
        return tuple(named) if len(named) > 1 else _USUAL_EFFORTS
    # It has a branch for each that it knows. The one for all others is neither little nor much.
    return tuple(word for word in taken if word in named or texts[word] != unknown or word == "medium")


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What a template is told of thinking."""

    variables: dict[str, Any] = field(default_factory=dict)
    is_ignored: bool = False  # the effort changes nothing with this model, or is no word that anyone has


def choose_reasoning(effort: str | None, thinking: bool | None, traits: TemplateTraits) -> Reasoning:  # noqa: FBT001
    """Return the variables for a client's wishes; what a template cannot do is left out, as no client can know it.

    Args:
        effort: one of `EFFORTS`, and any other says nothing; "none" turns thinking off where the template can, and is
            the least effort elsewhere.
        thinking: whether the model may think; it goes before what the effort says of it.
        traits: of the template.
    """
    is_asked, effort = effort is not None, effort if effort in EFFORTS else None
    variables: dict[str, Any] = {}
    switch = thinking if thinking is not None or effort is None else effort != _OFF
    if traits.thinking is not None and switch is not None and (switch or traits.can_stop_thinking):
        variables[traits.thinking] = switch
    is_off = effort == _OFF and variables.get(traits.thinking or "") is False
    word = None if effort is None or is_off else nearest_effort(effort, traits.efforts)
    if word is not None:
        variables[traits.effort_variable] = word
    return Reasoning(variables, is_asked and (effort is None or not variables))


def nearest_effort(effort: str, known: tuple[str, ...]) -> str | None:
    """Return the word that is nearest to *effort*, the higher of two; None where there is none.

    Who asks for little thinking is not answered without any.
    """
    if effort not in EFFORTS:
        return None
    rank = EFFORTS.index(effort)
    words = [word for word in known if word != _OFF or effort == _OFF]
    return min(words, key=lambda word: (abs(EFFORTS.index(word) - rank), -EFFORTS.index(word)), default=None)
