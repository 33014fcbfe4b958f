"""Counts tokens: all since the start, and how many a second of late. Who counts says what time it is."""

from __future__ import annotations

from collections import deque

# Long enough to be read, short enough to show what is going on.
WINDOW_S = 5


class TokenMeter:
    """Tokens of one model, or of all."""

    def __init__(self) -> None:
        self.total = 0
        self._seconds: deque[list[int]] = deque()  # [second, tokens], those of the window, oldest first
        self._begun_s = 0.0  # of the burst that the window looks at

    def add(self, tokens: int, now_s: float) -> None:
        """Count *tokens* that were made now."""
        self.total += tokens
        second = int(now_s)
        if self._seconds and self._seconds[-1][0] == second:  # nearly always
            self._seconds[-1][1] += tokens
            return
        self._forget(second)
        if not self._seconds:
            self._begun_s = now_s
        self._seconds.append([second, tokens])

    def per_s(self, now_s: float) -> float:
        """Return the tokens per second of the last `WINDOW_S` seconds; a younger burst counts from its begin."""
        second = int(now_s)
        self._forget(second)
        tokens = sum(made for _, made in self._seconds)
        since_s = max(self._begun_s, second - WINDOW_S + 1)
        return tokens / max(1.0, now_s - since_s)

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - WINDOW_S:
            self._seconds.popleft()
