"""Chats with a real daemon by the official client: a whole answer, or a stream that is read in two parts."""

from __future__ import annotations

from typing import Any

from openai import OpenAI

# Long enough to outlive a few mlxctl calls on a slow machine; the tiny model ends by length only.
LONG = 900


def ask(client: OpenAI, model: str, max_tokens: int = 8, **options: Any) -> str:
    """Return a whole greedy answer."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=max_tokens,
        temperature=0,
        **options,
    )
    return str(answer.choices[0].message.content)


class Streaming:
    """A stream that has begun; `finish` reads the rest."""

    def __init__(self, client: OpenAI, model: str, max_tokens: int = LONG) -> None:
        """Start it and read its first text."""
        self._chunks = iter(
            client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "hello"}],
                max_tokens=max_tokens,
                temperature=0,
                stream=True,
            )
        )
        self.text = ""
        self.finish_reason: str | None = None
        while not self.text:
            self._take(next(self._chunks))

    def finish(self) -> str:
        """Read to the end and return the whole text."""
        for chunk in self._chunks:
            self._take(chunk)
        return self.text

    def _take(self, chunk: Any) -> None:
        if chunk.choices:
            self.text += chunk.choices[0].delta.content or ""
            self.finish_reason = chunk.choices[0].finish_reason or self.finish_reason
