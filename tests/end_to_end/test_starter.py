"""The real starter model, asked through the OpenAI route."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.daemon import running_daemon
from tests.support.starter import starter_folder

MODEL = "smollm2-135m-instruct"
QUESTION: Any = {"role": "user", "content": "What is the capital of France?"}


def test_it_answers_and_stays_within_what_was_reckoned(tmp_path: Path) -> None:
    """At temperature 0 it says Paris, streamed as whole; what it holds was known before the load to a few per cent."""
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    (home / "models" / MODEL).symlink_to(starter_folder())
    with running_daemon(home, "[http]\nport = 0\n") as daemon:
        client = daemon.client()
        estimated_bytes = daemon.ask("model", "show", MODEL)["weights_bytes"]

        whole = client.chat.completions.create(model=MODEL, messages=[QUESTION], temperature=0)
        stream = client.chat.completions.create(model=MODEL, messages=[QUESTION], temperature=0, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

        assert whole.choices[0].message.content == "The capital of France is Paris."
        assert whole.choices[0].finish_reason == "stop"
        assert streamed == whole.choices[0].message.content
        (model,) = daemon.ask("ps")["models"]
        assert not model["estimated"]
        assert abs(model["weights_bytes"] - estimated_bytes) < 0.05 * estimated_bytes
