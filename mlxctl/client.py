"""The control connection as mlxctl uses it: a blocking socket, one request after the other, beside subscriptions.

`connect.py` has the words for everything that can be wrong. Frames are `mlxd.protocol.framing`'s. Must not import
asyncio: it costs as much as the rest of the program.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlxctl.connect import CLOSED, connect, connection_error
from mlxctl.subscription import Subscription
from mlxd import __version__
from mlxd.protocol import framing
from mlxd.protocol.errors import EXIT_UNREACHABLE, ControlError, ProtocolError
from mlxd.protocol.units import format_duration

_RECEIVE_BYTES = 65536

Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Terms:
    """How a change is asked for.

    Attributes:
        dry: say what would change, change nothing.
        persist: False leaves the settings file alone.
        if_generation: refuse when the settings are of another generation.
        key: tells the change from every other, so that it is made once however often it is asked for.
    """

    dry: bool = False
    persist: bool = True
    if_generation: int | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request: the result, and the generation of the settings it was made under."""

    result: dict[str, Any]
    generation: int | None
    ignored: tuple[str, ...] = ()


def is_running(path: Path, timeout_s: float) -> bool:
    """Tell whether a daemon says hello at *path*; errors that are about something else than its absence are raised."""
    try:
        with Client(path, timeout_s):
            return True
    except ControlError as error:
        if error.exit_code == EXIT_UNREACHABLE:
            return False
        raise


class Client:
    """One connection to the daemon, greeted."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        """Connect to the socket at *path* and exchange hellos.

        Args:
            path: the control socket.
            timeout_s: longest wait for the hello, and for each answer unless the request says otherwise.

        Raises:
            ControlError: there is no daemon, it may not be talked to, or it speaks another protocol.
        """
        self.path = path
        self.timeout_s = timeout_s
        self._decoder = framing.FrameDecoder(framing.MAX_REPLY_BYTES)
        self._frames: deque[dict[str, Any]] = deque()
        self._subscriptions: dict[int, Subscription] = {}
        self._last_id = 0
        self._socket = connect(path, timeout_s)
        try:
            self.hello = self._greet()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; operations that it began go on."""
        self._socket.close()

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return int(self.hello["pid"])

    @property
    def version(self) -> str:
        """The version of the running daemon."""
        return str(self.hello["version"])

    def request(
        self,
        operation: str,
        params: Mapping[str, Any] | None = None,
        terms: Terms | None = None,
        *,
        timeout_s: float | None = None,
        on_progress: Progress | None = None,
        is_question: bool = False,
    ) -> Reply:
        """Ask for one operation and return its answer.

        When the connection breaks before the answer, a question and a change with a key (one for each change) are
        asked again over a new connection to the same daemon, which makes the change once.

        Raises:
            ControlError: as the daemon answered, or no answer came in time (exit 7), or the daemon went away (exit 3).
                What shall not be saved is not asked of a daemon that is too old to leave the file alone (exit 9).
        """
        frame: dict[str, Any] = {"t": "req", "m": operation, "p": dict(params or {})}
        if terms is not None:
            frame |= self._agree(terms)
        can_repeat = is_question or "idem" in frame
        try:
            answer = self._exchange(frame, operation, timeout_s, on_progress)
        except ControlError as error:
            if error.code != CLOSED or not can_repeat:
                raise
            self._reconnect(operation)
            answer = self._exchange(frame, operation, timeout_s, on_progress)
        return _read_answer(answer)

    def _agree(self, terms: Terms) -> dict[str, Any]:
        """Return the keys of the frame that say how a change is asked for; those that the daemon knows."""
        caps = self.hello.get("caps", ())
        if not terms.persist and "persist" not in caps:
            raise connection_error("protocol.version", version=self.version)
        keys = {
            "dry": terms.dry or None,
            "persist": False if not terms.persist else None,
            "if_gen": terms.if_generation,
            "idem": terms.key if "idem" in caps else None,
        }
        return {name: value for name, value in keys.items() if value is not None}

    def subscribe(self, topics: Sequence[str] | None = None, *, model: str | None = None) -> Subscription:
        """Return a snapshot and what happens after it, of *topics* (all when left out) and about *model* (all).

        `subscription.snapshot` is {gen, pool, requests, operations} as `status` has them. Then, until Ctrl-C:

            for item in subscription:                  # or item = subscription.next(timeout_s): None when nothing came
                if isinstance(item, Gap):              # events were lost: subscribe again for a new snapshot
                    ...
                else:                                  # Event(seq, kind, data): "model.loaded", {"model": ..., ...}
                    ...

        Requests may be asked on the same connection in between. `mlxd.protocol.event` lists the topics.

        Raises:
            ControlError: refused; later, from the subscription, when it ends (code `control.ended`, with the reason).
        """
        frame: dict[str, Any] = {"t": "sub", "topic": "events"}
        if topics is not None:
            frame["topics"] = list(topics)
        if model is not None:
            frame["model"] = model
        number = self._last_id + 1
        # Events may follow the answer in the same read, so their place is made first.
        subscription = self._subscriptions[number] = Subscription(self._pump, lambda: self._unsubscribe(number))
        try:
            reply = _read_answer(self._exchange(frame, "a subscription", None, None))
        except BaseException:
            del self._subscriptions[number]
            raise
        is_choosing = "topics" in self.hello.get("caps", ())
        subscription.begin(reply.result, None if is_choosing else topics, None if is_choosing else model)
        return subscription

    def _reconnect(self, operation: str) -> None:
        """Open the connection anew; its subscriptions have ended with it.

        Raises:
            ControlError: the daemon is gone, or is another one now, which cannot know what was done.
        """
        boot_id = self.hello.get("boot_id")
        self.close()
        self._decoder = framing.FrameDecoder(framing.MAX_REPLY_BYTES)
        self._frames.clear()
        self._subscriptions.clear()
        self._socket = connect(self.path, self.timeout_s)
        self.hello = self._greet()
        if self.hello.get("boot_id") != boot_id:
            raise connection_error("control.restarted", operation=operation)

    def _exchange(
        self, frame: dict[str, Any], name: str, timeout_s: float | None, on_progress: Progress | None
    ) -> dict[str, Any]:
        """Send a frame and return the `res` frame that answers it."""
        self._last_id += 1
        wait_s = self.timeout_s if timeout_s is None else timeout_s
        deadline_s = time.monotonic() + wait_s
        self._send({**frame, "id": self._last_id})
        while True:
            try:
                answer = self._receive(deadline_s)
            except TimeoutError:
                raise connection_error("control.timeout", operation=name, duration=format_duration(wait_s)) from None
            if answer.get("id") != self._last_id:
                self._hand_on(answer)
            elif answer.get("t") == "prog" and on_progress is not None:
                on_progress(answer)
            elif answer.get("t") == "res":
                return answer

    def _hand_on(self, frame: dict[str, Any]) -> None:
        """Give a subscription's frame to it; whatever else is not asked for is passed over."""
        subscription = self._subscriptions.get(frame.get("sub", 0))
        if subscription is not None:
            subscription.take(frame)

    def _pump(self, deadline_s: float | None) -> bool:
        """Take one frame for the subscriptions; False when none came before *deadline_s*, None waits forever."""
        try:
            frame = self._receive(deadline_s)
        except TimeoutError:
            return False
        self._hand_on(frame)
        return True

    def _unsubscribe(self, number: int) -> None:
        if self._subscriptions.pop(number, None) is not None:
            self._send({"t": "cancel", "id": number})

    def wait_closed(self, timeout_s: float) -> bool:
        """Return True when the daemon has ended the connection; False when it has not within *timeout_s*."""
        deadline_s = time.monotonic() + timeout_s
        try:
            while True:
                self._receive(deadline_s)
        except TimeoutError:
            return False
        except ControlError:
            return True

    def _greet(self) -> dict[str, Any]:
        deadline_s = time.monotonic() + self.timeout_s
        self._send(framing.make_hello(__version__))
        try:
            hello = self._receive(deadline_s)
        except TimeoutError:
            duration = format_duration(self.timeout_s)
            raise connection_error("control.silent", path=self.path, duration=duration) from None
        if hello.get("t") == "reject":
            raise ControlError.from_wire(hello.get("e") or {})
        if hello.get("t") != "hello" or not isinstance(hello.get("pid"), int):
            raise connection_error("protocol.foreign", path=self.path, reason="its first frame is no hello")
        return hello

    def _send(self, frame: Mapping[str, Any]) -> None:
        data = framing.encode(frame, framing.MAX_REQUEST_BYTES)
        self._socket.settimeout(self.timeout_s)
        try:
            self._socket.sendall(data)
        except TimeoutError:
            words = {"operation": frame.get("m", "hello"), "duration": format_duration(self.timeout_s)}
            raise connection_error("control.timeout", **words) from None
        except OSError:
            # The daemon may have said why before it hung up: the next receive reads that, or finds the end.
            return

    def _receive(self, deadline_s: float | None) -> dict[str, Any]:
        while not self._frames:
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise TimeoutError
            self._socket.settimeout(left_s)
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except ConnectionError:
                data = b""
            if not data:
                raise connection_error(CLOSED, path=self.path)
            try:
                self._frames.extend(self._decoder.feed(data))
            except ProtocolError as error:
                reason = error.data.get("spoken") or error.message
                raise connection_error("protocol.foreign", path=self.path, reason=reason) from None
        return self._frames.popleft()


def _read_answer(answer: Mapping[str, Any]) -> Reply:
    if not answer.get("ok"):
        raise ControlError.from_wire(answer.get("e") or {})
    return Reply(answer.get("r") or {}, answer.get("gen"), tuple(answer.get("ignored") or ()))
