"""A reporter that remembers what it was told."""

from __future__ import annotations

from mlxd.download.progress import Pulled
from mlxd.protocol.errors import MlxdError


class RecordingReporter:
    """Keeps progress by phase, notes, and the end."""

    def __init__(self) -> None:
        self.phases: dict[str, list[tuple[int, int | None]]] = {}
        self.notes: list[str] = []
        self.ended: list[Pulled | MlxdError] = []

    def progress(self, phase: str, done_bytes: int, total_bytes: int | None) -> None:
        self.phases.setdefault(phase, []).append((done_bytes, total_bytes))

    def note(self, message: str) -> None:
        self.notes.append(message)

    def done(self, pulled: Pulled) -> None:
        self.ended.append(pulled)

    def error(self, error: MlxdError) -> None:
        self.ended.append(error)
