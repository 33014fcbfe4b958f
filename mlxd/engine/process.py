"""Bounds work that may never end, take all memory, or crash: it is done by processes (`process_child.py`).

A chat template is a program that came with a model, and a grammar is what a client asks for. What they cost is bounded
in time, memory and length, and the process is killed at the bound or when nobody waits for it any more.

A process keeps nothing of its work, so the few there are serve all models: a piece of work takes one that is idle or
starts another, and up to `_MOST_IDLE` stay. A model does as many at once as it has threads for them (`handle.py`). So a
bad template delays the prompts of other models by the start of a process at most (70 ms), and those of its own model by
`DEADLINE_S`.

Measured with 20 messages of 9 kB together, median of 2000 (2 cores): 0.070 ms by a call, 0.076 ms by a process;
twice as long where a few of them are rendered again with marks (`checkpoint.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from mlxd.engine import process_child as child
from mlxd.engine.kv_shape import KvShape
from mlxd.protocol.errors import InvalidRequest, RequestCancelled, TemplateFailed
from mlxd.protocol.units import format_bytes

DEADLINE_S = 10.0
# What the rendering of marked messages may take: the prompt is there and waits for it.
SECOND_S = 1.0
MEMORY_BYTES = 2**30
TEXT_BYTES = 2**26
# Python and jinja2 have to be read from the disk first.
_START_S = 60.0
# How long after the deadline a process ends itself: the daemon, if it is still there, is first.
_ALARM_AFTER_S = 2.0
# Work that takes longer is looked at; a process can fill 100 MB in that time.
_LOOK_S = 0.02
_MOST_IDLE = 2
# One that long work has made larger than this is not kept.
_KEPT_BYTES = 2**27
_PROGRAM = Path(child.__file__)
_HEAD = struct.Struct(">cI")
_LENGTH = struct.Struct(">I")
_CHUNK_BYTES = 2**20
# What a program needs of an environment to find its libraries and the time; keys and tokens stay here.
_ENVIRONMENT = ("TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_HINT = (
    "look at the model's chat template (chat_template.jinja, or chat_template in tokenizer_config.json);"
    " /v1/completions takes text and renders nothing"
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one piece of work may take."""

    deadline_s: float = DEADLINE_S
    memory_bytes: int = MEMORY_BYTES
    text_bytes: int = TEXT_BYTES
    second_s: float = SECOND_S


class Processes:
    """The processes that work for all models. Called on worker threads."""

    def __init__(self, bounds: Bounds = Bounds()) -> None:
        self._bounds = bounds
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._is_open = True

    def render(self, model_id: str, job: Mapping[str, Any], is_given_up: Callable[[], bool]) -> tuple[str, str]:
        """Return the text of *job* (see `process_child.py`), a template of *model_id*, and that of its marked messages.

        The second text is empty where there are none, and where it does not come in time, as the request does not
        depend on it.

        Args:
            model_id: for the words of an error.
            job: what to render.
            is_given_up: asked now and then; once it says so, the rendering ends with `RequestCancelled`.

        Raises:
            InvalidRequest: the template refuses the messages, or they cannot be sent.
            TemplateFailed: it reached a bound, or its process ended.
        """
        try:
            kind, body, marked = self._answer(job, is_given_up)
        except (TypeError, ValueError, OverflowError) as error:  # numbers of more than 64 bits, 500 levels
            raise InvalidRequest(f"the messages cannot be rendered: {error}", param="messages") from None
        except _Ended as end:
            raise TemplateFailed(f"the chat template of '{model_id}' {end}", hint=_HINT) from None
        words = body.decode(errors="replace")
        if kind == child.TEXT:
            return words, marked.decode(errors="replace")
        if kind == child.REFUSED:
            raise InvalidRequest(f"the chat template of '{model_id}' refuses these messages: {words}", param="messages")
        raise TemplateFailed(f"the chat template of '{model_id}' {self._in_words(kind, words)}", hint=_HINT)

    def probe(self, job: Mapping[str, Any], is_given_up: Callable[[], bool]) -> list[str | None] | None:
        """Return what a template makes of each of the `probes` of *job* (see `process_child.py`), None where it raises.

        Nothing is returned where it reached a bound or its process ended.

        Raises:
            RequestCancelled: it was given up.
        """
        try:
            kind, body, _ = self._answer(job, is_given_up)
        except _Ended:
            return None
        texts: list[str | None] | None = json.loads(body) if kind == child.TEXT else None
        return texts

    def rehearse(self, job: Mapping[str, Any], is_given_up: Callable[[], bool]) -> str | None:
        """Return why the grammar of *job* (see `process_child.py`) cannot be compiled and followed; None when it can.

        Raises:
            RequestCancelled: it was given up.
        """
        try:
            kind, body, _ = self._answer(job, is_given_up)
        except ValueError as error:
            return str(error)
        except _Ended as end:
            return f"compiling it {end}"
        words = body.decode(errors="replace")
        if kind == child.TEXT:
            return None
        return words if kind == child.REFUSED else f"compiling it {self._in_words(kind, words)}"

    def shape(self, job: Mapping[str, Any]) -> KvShape | None:
        """Return what the caches of the model of *job* (see `process_child.py`) keep; None where it does not tell."""
        with contextlib.suppress(_Ended, TypeError, ValueError, OverflowError):
            kind, body, _ = self._answer(job, lambda: False)
            if kind == child.TEXT:
                return read_shape(json.loads(body))
        return None

    def close(self) -> None:
        """End all processes, now or when they are given back."""
        with self._lock:
            self._is_open = False
            idle, self._idle = self._idle, []
        for process in idle:
            process.kill()

    def _answer(self, job: Mapping[str, Any], is_given_up: Callable[[], bool]) -> tuple[bytes, bytes, bytes]:
        data = msgpack.packb(job, unicode_errors="surrogatepass", default=dict)
        process = self._take()
        try:
            kind, body = process.exchange(data, is_given_up)
            has_second = kind == child.TEXT and bool(job.get("marked"))
            return kind, body, process.second(is_given_up) if has_second else b""
        finally:
            self._give_back(process)

    def _take(self) -> _Process:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        try:
            return _Process(self._bounds)
        except OSError as error:
            raise _Ended(f"needs a process, and none can be started: {error}") from error

    def _give_back(self, process: _Process) -> None:
        with self._lock:
            if self._is_open and process.is_fit and len(self._idle) < _MOST_IDLE:
                self._idle.append(process)
                return
        process.kill()

    def _in_words(self, kind: bytes, words: str) -> str:
        if kind == child.TOO_LONG:
            return f"makes more than {format_bytes(self._bounds.text_bytes)} of text"
        return _memory_words(self._bounds) if kind == child.TOO_MUCH_MEMORY else f"failed: {words}"


class _Ended(Exception):
    """The process is no more, and its work is not done; the message says why."""


class _Process:
    """One process. Works for one thread at a time."""

    def __init__(self, bounds: Bounds) -> None:
        """Start it; it says itself when it is ready."""
        self._bounds = bounds
        self._is_ready = False
        self._is_slow = False  # its last work took so long that it was looked at
        self._received = bytearray()  # and not taken yet
        self.is_fit = False  # for more work
        arguments = {
            "path": [entry for entry in sys.path if entry],
            "memory_bytes": bounds.memory_bytes,
            "text_bytes": bounds.text_bytes,
            "alarm_s": bounds.deadline_s + _ALARM_AFTER_S,
        }
        # A fresh interpreter: a copy of this process could not run Python beside MLX's threads.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROGRAM), json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("pipes were asked for")
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)

    def exchange(self, data: bytes, is_given_up: Callable[[], bool]) -> tuple[bytes, bytes]:
        """Send one job and return the kind and the body of its answer.

        Raises:
            _Ended: it was killed at a bound, or ended by itself.
            RequestCancelled: nobody waits for it any more.
        """
        self.is_fit = False
        if not self._is_ready:
            kind, body = self._converse(b"", _START_S, is_given_up)
            if kind != child.READY:
                return kind, body
            self._is_ready = True
        kind, body = self._converse(_LENGTH.pack(len(data)) + data, self._bounds.deadline_s, is_given_up)
        self._keep_if_fit(kind)
        return kind, body

    def second(self, is_given_up: Callable[[], bool]) -> bytes:
        """Return the text that comes after the answer to a job with marked messages; nothing if it is not made in time.

        Raises:
            RequestCancelled: nobody waits for it any more.
        """
        self.is_fit = False
        with contextlib.suppress(_Ended):
            kind, body = self._converse(b"", self._bounds.second_s, is_given_up)
            self._keep_if_fit(kind)
            return body if kind == child.TEXT else b""
        return b""

    def _keep_if_fit(self, kind: bytes) -> None:
        is_small = not self._is_slow or resident_bytes(self._process.pid) < _KEPT_BYTES
        self.is_fit = is_small and kind in {child.TEXT, child.REFUSED}

    def _converse(self, data: bytes, deadline_s: float, is_given_up: Callable[[], bool]) -> tuple[bytes, bytes]:
        ends_at = time.monotonic() + deadline_s
        unsent = memoryview(data)
        self._is_slow = False
        while (answer := self._next_answer()) is None:
            if time.monotonic() >= ends_at:
                raise _Ended(self._time_words())
            try:
                if unsent:
                    unsent = unsent[os.write(self._in, unsent[:_CHUNK_BYTES]) :]
                    continue
            except BlockingIOError:
                pass
            except BrokenPipeError:
                unsent = memoryview(b"")  # the reason comes with the end of its answers
            if not self._wait(writing=bool(unsent)):
                self._look(is_given_up)
                continue
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(self._out, _CHUNK_BYTES)
                if not chunk:
                    raise _Ended(self._cause())
                self._received += chunk
        return answer

    def _next_answer(self) -> tuple[bytes, bytes] | None:
        """Take an answer from what was received; None while it is not there as a whole."""
        if len(self._received) < _HEAD.size:
            return None
        kind, length = _HEAD.unpack_from(self._received)
        if length > self._bounds.text_bytes:
            return child.TOO_LONG, b""
        end = _HEAD.size + length
        if len(self._received) < end:
            return None
        body = bytes(memoryview(self._received)[_HEAD.size : end])
        del self._received[:end]
        return kind, body

    def _wait(self, *, writing: bool) -> bool:
        """Return whether there is something to do within `_LOOK_S`."""
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        if writing:
            poll.register(self._in, select.POLLOUT)
        return bool(poll.poll(_LOOK_S * 1000))

    def _look(self, is_given_up: Callable[[], bool]) -> None:
        """Look at work that is not done at once."""
        self._is_slow = True
        if is_given_up():
            raise RequestCancelled("the request was cancelled while its prompt was made ready")
        if resident_bytes(self._process.pid) > self._bounds.memory_bytes:
            raise _Ended(_memory_words(self._bounds))

    def _cause(self) -> str:
        """Return in words why the process has ended by itself."""
        status = self._process.wait()
        if status == -signal.SIGALRM:
            return self._time_words()
        return f"crashed the process that it ran in (status {status})"

    def _time_words(self) -> str:
        if not self._is_ready:
            return f"did not begin: its process did not start within {_START_S:g} s"
        return f"did not end within {self._bounds.deadline_s:g} s"

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()


def read_shape(told: Any) -> KvShape:
    """Return the shape of which JSON has the groups and the fixed bytes; anything else is a ValueError or TypeError."""
    groups, fixed_bytes = told
    return KvShape(
        tuple((int(per_token), None if cap is None else int(cap)) for per_token, cap in groups), int(fixed_bytes)
    )


def _memory_words(bounds: Bounds) -> str:
    return f"takes more than {format_bytes(bounds.memory_bytes)} of memory"


def resident_bytes(pid: int) -> int:
    """Return the memory that a process of ours takes now; 0 for one that has ended."""
    if sys.platform == "darwin":
        # <libproc.h>: rusage_info_v0 is a uuid and ten u64, the eighth of which is the footprint.
        usage = (ctypes.c_uint64 * 12)()
        failed = ctypes.CDLL(None).proc_pid_rusage(pid, 0, ctypes.byref(usage))
        return 0 if failed else int(usage[2 + 7])
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as statm:  # noqa: PTH123 called every 20 ms
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
