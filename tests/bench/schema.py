"""What an answer bound to a JSON schema costs beside a free one, in turns on one daemon."""

from __future__ import annotations

from statistics import median
from typing import Any

from tests.bench.live import Rows
from tests.bench.process import Worker

STREAMS = (1, 8, 16)
REQUESTS = 2
MAX_TOKENS = 128
# A random model writes the one text until it is cut off: both answers have as many tokens.
_SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string", "minLength": 2 * MAX_TOKENS}, "age": {"type": "integer"}},
    "required": ["text", "age"],
    "additionalProperties": False,
}
_BOUND = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": _SCHEMA}}}


def measure_schema(rounds: int, client: Worker, address: dict[str, Any]) -> Rows:
    """Return tokens per second with a schema and without; the first round is warm-up."""
    rows = []
    for streams in STREAMS:
        rates: dict[str, list[float]] = {"free": [], "bound": []}
        for number in range(rounds + 1):
            for name, extra in (("free", {}), ("bound", _BOUND)):
                client.send(
                    measure="throughput",
                    streams=streams,
                    requests=REQUESTS,
                    max_tokens=MAX_TOKENS,
                    extra=extra,
                    **address,
                )
                rate = client.receive()["tokens_per_s"]
                if number > 0:
                    rates[name].append(rate)
        ratios = [bound / free for free, bound in zip(rates["free"], rates["bound"], strict=True)]
        free, bound = median(rates["free"]), median(rates["bound"])
        rows.append(
            (
                f"tokens/s, {streams} streams, JSON schema on : off",
                f"{bound:.0f} : {free:.0f}, ratio {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            )
        )
    return rows
