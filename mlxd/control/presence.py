"""`Presence`: the lock and the control socket stay where mlxctl looks for them, whatever is deleted meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mlxd.control.listen import InstanceLock, ListeningSocket
from mlxd.control.server import ControlServer
from mlxd.protocol.errors import InUse, MlxdError

LOOK_S = 2.0
_log = logging.getLogger(__name__)


class Presence:
    """Makes the files of the lock and of the socket anew when they are gone. Never makes their folders."""

    def __init__(
        self, lock: InstanceLock, listening: ListeningSocket, server: ControlServer, on_replaced: Callable[[], None]
    ) -> None:
        """Take both, who accepts the clients, and who is told that another daemon has the home now."""
        self._lock = lock
        self._listening = listening
        self._server = server
        self._on_replaced = on_replaced
        self._trouble: str | None = None

    async def watch(self, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Look every few seconds, until another daemon has the home."""
        is_ours = True
        while is_ours:
            await sleep(LOOK_S)
            is_ours = await self.look()

    async def look(self) -> bool:
        """Look once; False when another daemon has the home: nobody can steer this one any more, so it should end."""
        try:
            self._lock.restore()
        except InUse as error:
            _log.error("%s, so this daemon ends", error.message)
            self._on_replaced()
            return False
        except OSError:
            return True  # the folder is gone; the settings file in it is a problem that `status` shows
        try:
            if self._listening.restore():
                _log.warning("%s was deleted and is made anew", self._listening.path)
                await self._server.start(self._listening.socket)
            self._trouble = None
        except (MlxdError, OSError) as error:
            if self._trouble != str(error):
                self._trouble = str(error)
                _log.error("the control socket %s cannot be made anew: %s", self._listening.path, error)
        return True
