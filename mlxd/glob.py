"""Globs over names: `*` and `?`, nothing else. They run on RE2, in time linear in the name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import re2

MAX_PATTERN_CHARACTERS = 256
# Bounds RE2's program and its cache of states; what needs more is refused when it is compiled.
_MAX_MEMORY_BYTES = 1 << 18


def compile_globs(globs: Sequence[Any]) -> Any:
    """Return one RE2 pattern whose `fullmatch` finds what any of *globs* matches, as a rule's glob does.

    Raises:
        ValueError: one of them is no glob, or they are too many.
    """
    for glob in globs:
        if not isinstance(glob, str) or not glob or "[" in glob or len(glob) > MAX_PATTERN_CHARACTERS:
            raise ValueError(
                f"{str(glob)[:80]!r} is no glob of 1 to {MAX_PATTERN_CHARACTERS} characters with * and ? as wildcards"
            )
    try:
        return re2.compile("|".join(f"(?:{glob_regex(glob)})" for glob in globs), re2_options())
    except re2.error:
        raise ValueError("the globs are too many") from None


def glob_regex(glob: str) -> str:
    """Return the glob in RE2's syntax."""
    wildcards = {"*": ".*", "?": "."}
    return "".join(wildcards.get(character, re2.escape(character)) for character in glob)


def re2_options() -> Any:
    """Return how patterns from settings and keys are compiled: bounded, quiet, and a dot matches every character."""
    options = re2.Options()
    options.max_mem = _MAX_MEMORY_BYTES
    options.log_errors = False
    options.dot_nl = True
    options.never_capture = True
    return options
