"""The control plane's frames, without I/O: the asyncio server and mlxctl's blocking socket both stand on this.

On the wire a frame is its length, a u32 in big-endian order, and one msgpack map. Unknown keys are ignored; a key
never changes its type or meaning. `t` is the frame's type:

    hello  {t, min, max, version, caps}                       the first frame of either side
           the daemon adds {proto, boot_id, pid, gen, http, limits: {request_bytes, in_flight}}
    reject {t, e, min?, max?, version?}                       instead of the daemon's hello; the connection ends
    req    {t, id, m, p, deadline_ms?, idem?, if_gen?,        an operation of `operations/`; a mutation asked for twice
            dry?, persist?}                                   with one `idem` is made once and answered twice
    res    {t, id, ok, r | e, gen, ignored?}                  its answer, in any order; `ignored` names unknown params
    prog   {t, id, op, phase, done, total}                    while an `op.wait` is open
    cancel {t, id}                                            gives up a request or ends a subscription
    sub    {t, id, topic, topics?, model?}                    answered by res with r = {sub, seq, snapshot}; `topic` is
                                                              "events", `topics` and `model` choose among them
    evt    {t, sub, seq, k, d}                                what happened after the snapshot, of kind `k`
    gap    {t, sub, from, to}                                 events were lost: the client reads too slowly
    end    {t, sub, reason}                                   there will be nothing more
    ping   {t} → pong {t}

`e` is `{code, msg, exit, hint?, field?, data?}` (`errors.MlxdError.to_wire`). Bytes and milliseconds are integers, and
a time is in unix milliseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgpack

from mlxd.protocol.errors import ProtocolError

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

# 1 MiB of empty maps already inflates to about 74 MB of objects, so a request may not be longer.
MAX_REQUEST_BYTES = 2**20
MAX_REPLY_BYTES = 8 * 2**20
HELLO_TIMEOUT_S = 2.0

_LENGTH = struct.Struct(">I")
_HTTP_STARTS = (b"GET ", b"PUT ", b"POST", b"HEAD", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC", b"PRI ")
_TLS_HANDSHAKE = b"\x16\x03"


def encode(frame: Mapping[str, Any], max_bytes: int) -> bytes:
    """Return the bytes of *frame*, its length included.

    Raises:
        ProtocolError: the frame is longer than *max_bytes*, or holds a number or text that msgpack cannot.
    """
    try:
        body: bytes = msgpack.packb(frame, use_bin_type=True)
    except (OverflowError, UnicodeEncodeError) as error:
        raise ProtocolError(f"a value cannot be sent: {error}") from None
    if len(body) > max_bytes:
        raise ProtocolError(
            f"a frame of {len(body)} bytes is over the limit of {max_bytes} bytes", code="protocol.too_large"
        )
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Cuts a stream of bytes into frames; one per connection. After an error the stream cannot be read on."""

    def __init__(self, max_bytes: int) -> None:
        """Refuse frames of more than *max_bytes*, before their body has come."""
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._is_first = True

    @property
    def is_between_frames(self) -> bool:
        """Whether a stream that ends here ends whole."""
        return not self._buffer

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Take what was read and return the frames that are complete.

        Raises:
            ProtocolError: the length is out of bounds or the body is no msgpack map. When the stream opens as another
                protocol does, the code is `protocol.foreign`, and `data["spoken"]` says `HTTP` or `TLS`.
        """
        self._buffer += data
        if self._is_first:
            self._refuse_foreign()
        frames = []
        while (end := self._end_of_frame()) is not None:
            frames.append(_decode_body(bytes(self._buffer[_LENGTH.size : end])))
            del self._buffer[:end]
        return frames

    def _refuse_foreign(self) -> None:
        head = bytes(self._buffer[:4])
        spoken = "HTTP" if head in _HTTP_STARTS else "TLS" if head.startswith(_TLS_HANDSHAKE) else None
        if spoken is not None:
            raise ProtocolError(
                f"this is mlxd's control socket, which speaks its own framing and not {spoken}",
                code="protocol.foreign",
                data={"spoken": spoken},
            )
        self._is_first = len(head) < _LENGTH.size

    def _end_of_frame(self) -> int | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if not 1 <= length <= self._max_bytes:
            raise ProtocolError(
                f"a frame of {length} bytes; it must be from 1 to {self._max_bytes} bytes", code="protocol.too_large"
            )
        end: int = _LENGTH.size + length
        return end if len(self._buffer) >= end else None


def _decode_body(body: bytes) -> dict[str, Any]:
    try:
        frame = msgpack.unpackb(body, raw=False, strict_map_key=True, max_ext_len=0, ext_hook=_refuse_ext)
    except ValueError as error:  # every error of msgpack's unpacker is one
        raise ProtocolError(
            f"a frame is not a msgpack map: {str(error) or type(error).__name__}", code="protocol.garbage"
        ) from None
    if not isinstance(frame, dict):
        raise ProtocolError(f"a frame is not a msgpack map but {type(frame).__name__}", code="protocol.garbage")
    return frame


def _refuse_ext(code: int, data: bytes) -> Any:  # noqa: ARG001  (msgpack's signature)
    raise ValueError(f"extension type {code}")


def answer_foreign(spoken: str) -> bytes:
    """Return what a peer that speaks `HTTP` or `TLS` can show to its user."""
    words = (
        "This is mlxd's control socket; it does not speak HTTP. The OpenAI API is on TCP: "
        "`mlxctl status` prints its address.\n"
    )
    if spoken != "HTTP":
        return words.encode()
    head = (
        "HTTP/1.1 400 Bad Request",
        "content-type: text/plain",
        f"content-length: {len(words)}",
        "connection: close",
    )
    return "\r\n".join((*head, "", words)).encode()


def make_hello(version: str, *, caps: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """Return the first frame of either side."""
    return {"t": "hello", "min": PROTOCOL_MIN, "max": PROTOCOL_MAX, "version": version, "caps": list(caps), **more}


def choose_protocol(hello: Mapping[str, Any], *, daemon_version: str) -> int:
    """Return the protocol that the daemon speaks with the client that sent *hello*: the highest that both know.

    Raises:
        ProtocolError: not a hello, or no protocol in common; the message has both versions, the hint what fixes it.
    """
    low, high = hello.get("min"), hello.get("max")
    if hello.get("t") != "hello" or not isinstance(low, int) or not isinstance(high, int):
        raise ProtocolError("the first frame must be a hello with the protocol's min and max")
    if low <= PROTOCOL_MAX and high >= PROTOCOL_MIN:
        return min(high, PROTOCOL_MAX)
    client = f"mlxctl {hello.get('version', 'of unknown version')} speaks control protocol {_span(low, high)}"
    daemon = f"mlxd {daemon_version} speaks {_span(PROTOCOL_MIN, PROTOCOL_MAX)}"
    hint = (
        "mlxctl restart"
        if low > PROTOCOL_MAX
        else "install the mlxctl that came with the running mlxd, or upgrade mlxctl"
    )
    raise ProtocolError(f"{client}, {daemon}", code="protocol.version", hint=hint)


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
