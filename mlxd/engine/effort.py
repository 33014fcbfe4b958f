"""How much a model is to think: a client's word, and whether it may think at all, in the variables of its template."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlxd.engine.template_traits import EFFORTS, TemplateTraits

_OFF = "none"


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
