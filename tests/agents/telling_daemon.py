"""`mlxd` that also writes the tokens of every prompt to a file, so that a test can say what two of them share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

from mlxd import daemon
from mlxd.engine.base import GenerationRequest, PreparedPrompt
from mlxd.pool.lease import GenerateEvent, Lease

_PROMPTS = "prompts.jsonl"
_generate = Lease.generate


def read_prompts(home: Path) -> dict[str, list[int]]:
    """Return request id → tokens, in the order in which they came."""
    lines = (home / _PROMPTS).read_text().splitlines()
    return {line["request"]: line["tokens"] for line in map(json.loads, lines)}


def _telling(self: Lease, request: GenerationRequest, prompt: PreparedPrompt) -> AsyncGenerator[GenerateEvent, None]:
    with (Path(os.environ["MLXD_HOME"]) / _PROMPTS).open("a") as file:
        file.write(json.dumps({"request": self.request_id, "tokens": prompt.tokens}) + "\n")
    return _generate(self, request, prompt)


if __name__ == "__main__":
    Lease.generate = _telling  # type: ignore[method-assign]
    sys.exit(daemon.main())
