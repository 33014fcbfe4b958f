"""A finding of `mlxctl doctor`: one thing that was looked at, how it is, and what to do about it."""

from __future__ import annotations

from functools import partial

# check: what was looked at; verdict: ok, warn (works, and may not for long or not as somebody thinks) or fail;
# what: in a sentence, with the numbers; why: what follows from it, where that is not plain; try: the next command.
Finding = dict[str, str]


def _find(verdict: str, check: str, what: str, why: str | None = None, hint: str | None = None) -> Finding:
    finding = {"check": check, "verdict": verdict, "what": what, "why": why, "try": hint}
    return {name: text for name, text in finding.items() if text is not None}


ok, warn, fail = (partial(_find, verdict) for verdict in ("ok", "warn", "fail"))
