"""Many long generations under a limit that holds the KV of a few."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.daemon import RealDaemon, running_daemon
from tests.support.tiny_model import write_tiny_model

N_REQUESTS = 32
# Every eighth outgrows its first grant of prompt + 1024 tokens; the others are long by their prompts, which is faster.
GROWN_TOKENS = 1300
# 2 layers, 2 KV heads of 16 numbers, keys and values, 4 bytes: 512 bytes a token. Four rows with their first grant of
# some 1040 tokens and a step of 255 on top, and not one of them with its second grant.
KV_BYTES = 4 * 1310 * 2 * 2 * 2 * 16 * 4


def test_all_end_whole_and_equal_to_unhurried_ones(tmp_path: Path) -> None:
    """32 generations share the KV memory of about four; none is cut, none fails, all read as if they were alone."""
    home = tmp_path / "home"
    write_tiny_model(home / "models" / "a", context=4096)
    with running_daemon(home, "[http]\nport = 0\n") as daemon:
        _press(daemon)


def _press(daemon: RealDaemon) -> None:
    client = daemon.client()

    def complete(index: int) -> tuple[str, str]:
        is_growing = index % 8 == 0
        prompt = f"prompt number {index % 16} " + ("" if is_growing else "and so on " * 30)
        max_tokens = GROWN_TOKENS if is_growing else 24
        answer = client.completions.create(model="a", prompt=prompt, max_tokens=max_tokens, temperature=0)
        return answer.choices[0].text, str(answer.choices[0].finish_reason)

    unhurried = [complete(index) for index in range(16)]
    daemon.mlxctl("config", "set", "engine.prompt_cache=0B")
    memory = daemon.ask("pool", "show")["memory"]
    daemon.mlxctl("pool", "set-memory", f"{memory['weights_bytes'] + memory['margin_bytes'] + KV_BYTES}B")

    with ThreadPoolExecutor(N_REQUESTS) as threads:
        answers = list(threads.map(complete, range(N_REQUESTS)))

    assert answers == [unhurried[index % 16] for index in range(N_REQUESTS)]
    assert "pauses for memory" in daemon.log()
    after = daemon.ask("pool", "show")
    assert (after["queue"], after["over_limit"]) == ([], None)
