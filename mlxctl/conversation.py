"""What a chat is about: the model, what was said, and how answers are sampled. Knows no terminal and no socket."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxd.protocol.errors import EXIT_USAGE, ControlError

# Their bounds are the server's, which names them.
PARAMETERS: Mapping[str, type[int | float]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "max_tokens": int,
    "seed": int,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
}
DEFAULT = "default"


@dataclass(slots=True)
class Conversation:
    """One chat.

    Attributes:
        model: the model's id.
        system: the system message; None for none.
        parameters: what is not the server's default.
        exchanges: prompts and what was answered, as far as it came.
        unanswered: the last prompt, when nothing was answered.
    """

    model: str
    system: str | None = None
    parameters: dict[str, float] = field(default_factory=dict)
    exchanges: list[tuple[str, str]] = field(default_factory=list)
    unanswered: str | None = None

    def make_body(self, prompt: str) -> dict[str, Any]:
        """Return the request that asks *prompt* after all that was said."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for asked, answered in self.exchanges:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": prompt})
        return {"model": self.model, "messages": messages, **self.parameters}

    def add(self, prompt: str, answer: str) -> None:
        """Keep an exchange; without an answer the prompt is kept for another try."""
        if answer:
            self.exchanges.append((prompt, answer))
            self.unanswered = None
        else:
            self.unanswered = prompt

    def take_back(self) -> str | None:
        """Return the last prompt to ask it again; its answer is forgotten. None when nothing was asked."""
        if self.unanswered is None and self.exchanges:
            self.unanswered, _ = self.exchanges.pop()
        return self.unanswered

    def clear(self) -> None:
        """Forget all exchanges; the model, the system message and the parameters stay."""
        if self.exchanges and self.unanswered is None:
            self.unanswered = self.exchanges[-1][0]
        self.exchanges.clear()

    def set_parameter(self, name: str, text: str) -> None:
        """Set a sampling parameter from what was typed; `default` leaves it to the server.

        Raises:
            ControlError: there is no such parameter, or the text is no number for it.
        """
        kind = PARAMETERS.get(name)
        if kind is None:
            raise ControlError(
                f"there is no parameter {name!r}; there are {', '.join(PARAMETERS)}",
                exit_code=EXIT_USAGE,
                code="usage",
                hint="/set temperature 0.2",
            )
        if text == DEFAULT:
            self.parameters.pop(name, None)
            return
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            wanted = "a whole number" if kind is int else "a number"
            raise ControlError(
                f"{name} is {wanted} or {DEFAULT}, not {text!r}",
                exit_code=EXIT_USAGE,
                code="usage",
                hint=f"/set {name} {DEFAULT}",
            )
        self.parameters[name] = value
