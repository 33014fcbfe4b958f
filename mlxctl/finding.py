"""What `mlxctl doctor` finds: one thing that was looked at, how it is, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Verdict(Enum):
    """How a thing is; the value is what is printed."""

    OK = "ok"
    WARN = "warn"  # works, and may not for long or not as somebody thinks
    FAIL = "fail"  # does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at, a word or two.
        verdict: how it is.
        what: in a sentence, with the numbers.
        why: what follows from it, where that is not plain.
        hint: the next command.
    """

    check: str
    verdict: Verdict
    what: str
    why: str | None = None
    hint: str | None = None

    def describe(self) -> dict[str, Any]:
        """Return it as a part of the JSON document."""
        shown = {"why": self.why, "try": self.hint}
        return {
            "check": self.check,
            "verdict": self.verdict.value,
            "what": self.what,
            **{key: value for key, value in shown.items() if value is not None},
        }


def ok(check: str, what: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, Verdict.OK, what)


def warn(check: str, what: str, *, why: str | None = None, hint: str | None = None) -> Finding:
    """Return a finding that somebody should look at."""
    return Finding(check, Verdict.WARN, what, why, hint)


def fail(check: str, what: str, *, why: str | None = None, hint: str | None = None) -> Finding:
    """Return a finding that something does not work."""
    return Finding(check, Verdict.FAIL, what, why, hint)


def summarize(findings: Iterable[Finding]) -> dict[str, int]:
    """Return how many there are of each verdict."""
    counted = Counter(finding.verdict.value for finding in findings)
    return {verdict.value: counted[verdict.value] for verdict in Verdict}


def format_findings(document: Mapping[str, Any]) -> str:
    """Return the document as text: a line each, what follows and what to do below it, the sum at the end."""
    return "\n".join(_lines(document))


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    width = max(len(finding["check"]) for finding in document["findings"])
    for finding in document["findings"]:
        yield f"{finding['verdict']:<4}  {finding['check']:<{width}}  {finding['what']}"
        for name, word in (("why", ""), ("try", "try: ")):
            for line in finding.get(name, "").splitlines():
                yield f"{'':<4}  {'':<{width}}  {word}{line}"
    sums = document["sums"]
    yield f"\n{len(document['findings'])} checks: {sums['ok']} ok, {sums['warn']} to look at, {sums['fail']} failed"
