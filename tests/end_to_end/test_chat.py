"""`mlxctl chat` on a terminal with a real daemon: what Ctrl-C, a full context and a crash do to a conversation."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.conftest import CONFIG
from tests.support.daemon import running_daemon
from tests.support.dialogue import CTRL_C, CTRL_D, PROMPT, Dialogue
from tests.support.tiny_model import write_tiny_model


def test_conversation(tmp_path: Path) -> None:
    """Ctrl-C stops the answer in the daemon too; a full context is told; after a crash the next answer comes."""
    home = tmp_path / "home"
    write_tiny_model(home / "models" / "small", context=96)
    write_tiny_model(home / "models" / "large", context=100_000)
    with running_daemon(home, CONFIG) as daemon, Dialogue("chat", "large", environment=daemon.environment) as chat:
        chat.expect(PROMPT)
        chat.type("Talk forever.\n")
        chat.expect("Talk forever.\n")
        chat.expect_more(1000)  # far more than the small model's context holds
        assert [model["running"] for model in daemon.ask("ps")["models"]] == [1]
        chat.type(CTRL_C)
        chat.expect("[stopped: what came of it stays in the conversation; /retry asks again]")
        chat.expect(PROMPT)
        daemon.mlxctl("model", "unload", "large", "--wait")  # waits for whoever still uses it
        assert daemon.ask("ps")["models"] == []

        assert "large answers" not in chat.ask("/model small")
        assert "code: context_length_exceeded" in chat.ask("Go on.")
        assert "forgotten" in chat.ask("/clear")
        chat.ask("/set max_tokens 4")
        assert "[small: " in chat.ask("/retry")

        chat.ask("/model large")
        chat.ask("/set max_tokens default")
        chat.type("Again.\n")
        chat.expect("Again.\n")
        chat.read()
        daemon.kill()
        chat.expect("error: the answer broke off before its end")
        chat.expect(PROMPT)
        assert "/retry asks again" in chat.ask("Are you there?")
        daemon.start()
        chat.ask("/set max_tokens 4")
        assert "[large: " in chat.ask("/retry")
        chat.type(CTRL_D)
        assert chat.wait() == 0
