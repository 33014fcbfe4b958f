"""The inbox: what the device thread is told, and the last thing that it is told."""

from __future__ import annotations

from mlxd.engine.base import BackendLimits
from mlxd.engine.command import Close, Inbox, SetLimits


def test_after_close_there_is_nothing_but_close() -> None:
    """Whoever asks once more, such as the thread's last resort after a fault in its end, does not wait forever."""
    inbox = Inbox()
    command = SetLimits(BackendLimits(1, 0))
    inbox.put(command)
    inbox.close()
    inbox.put(command)
    assert inbox.get() == command
    assert [inbox.get(), inbox.get()] == [Close(), Close()]
