"""The ceiling: mlx-lm's BatchGenerator in a loop, with no server around it and prompts tokenized beforehand.

Reads and answers JSON lines as client.py does.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from mlx_lm import load
from mlx_lm.generate import BatchGenerator

from tests.bench.client import make_prompts

# What mlx_lm.server takes by default.
_COMPLETION_BATCH, _PREFILL_BATCH = 32, 8


class Bare:
    """One model and its generator."""

    def __init__(self, folder: str) -> None:
        """Load the model."""
        self._model, self._tokenizer = load(folder)
        self._generator = BatchGenerator(
            self._model, completion_batch_size=_COMPLETION_BATCH, prefill_batch_size=_PREFILL_BATCH
        )

    def tokenize(self, count: int, seed: int) -> list[list[int]]:
        """Return *count* prompts as the chat template makes them."""
        prompts = make_prompts(seed)
        return [
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": next(prompts)}], add_generation_prompt=True
            )
            for _ in range(count)
        ]

    def measure_throughput(self, seed: int, streams: int, requests: int, max_tokens: int) -> dict[str, Any]:
        """Return tokens per second with *streams* rows, each replaced by the next prompt when it ends."""
        prompts = self.tokenize(streams * requests, seed)
        waiting = prompts[streams:]
        tokens = ended = 0
        start_s = time.perf_counter()
        self._generator.insert(prompts[:streams], [max_tokens] * streams)
        while ended < len(prompts):
            for response in self._generator.next()[1]:
                tokens += 1
                if response.finish_reason is not None:
                    ended += 1
                    if waiting:
                        self._generator.insert([waiting.pop()], [max_tokens])
        seconds = time.perf_counter() - start_s
        assert tokens == len(prompts) * max_tokens
        return {"tokens_per_s": tokens / seconds}

    def measure_ttft(self, seed: int, count: int) -> dict[str, Any]:
        """Return the milliseconds to the first token of *count* prompts, one after the other."""
        return {"ms": [self._time(prompt, 8)[0] for prompt in self.tokenize(count, seed)]}

    def measure_latency(self, seed: int, count: int, max_tokens: int) -> dict[str, Any]:
        """Return the milliseconds to the last token of *count* prompts, one after the other."""
        return {"ms": [self._time(prompt, max_tokens)[1] for prompt in self.tokenize(count, seed)]}

    def _time(self, prompt: list[int], max_tokens: int) -> tuple[float, float]:
        arrivals_s: list[float] = []
        start_s = time.perf_counter()
        self._generator.insert([prompt], [max_tokens])
        while len(arrivals_s) < max_tokens:
            arrivals_s.extend(time.perf_counter() for _ in self._generator.next()[1])
        return (arrivals_s[0] - start_s) * 1000, (arrivals_s[-1] - start_s) * 1000


def main() -> None:
    """Load the model of the first argument and answer commands until stdin ends."""
    bare = Bare(sys.argv[1])
    measures: dict[str, Callable[..., dict[str, Any]]] = {
        "throughput": bare.measure_throughput,
        "ttft": bare.measure_ttft,
        "latency": bare.measure_latency,
    }
    for seed, line in enumerate(iter(sys.stdin.readline, "")):
        command = json.loads(line)
        print(json.dumps(measures[command.pop("measure")](seed, **command)), flush=True)


if __name__ == "__main__":
    main()
