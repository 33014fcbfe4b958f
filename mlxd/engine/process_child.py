"""The program that does for the daemon what may never end, take all memory, or crash: `process.py` starts and ends it.

It renders chat templates, which are programs that came with models; the rendering itself is transformers' own, so the
text is the same. And it compiles grammars that clients ask for before the daemon does (`rehearsal`): the library has
bounds for most of them, and not for all. And it builds models by their configs, to ask their caches what they keep.

Frames come on stdin: their length (u32, big-endian) and a msgpack map, of a template `{template, messages, marked,
tools, generation, continues, variables}` or `{template, probes, variables}`, of a grammar `{grammar, limits, added}`,
of a model `{module, config, dtype}`. Each is answered on stdout by one byte for what it is (see below), the length, and
UTF-8. A text of a template is followed by a second answer where there are messages in `marked`, by index: it is
rendered with these in place of those in `messages`. It runs without `site` and with an environment of its own, and
starts in 70 ms and takes 25 MB: only a model makes it import MLX and a part of mlxd.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import resource
import signal
import struct
import sys
import threading
import types
from typing import Any, BinaryIO

READY = b"k"  # in the beginning, once
TEXT = b"t"
REFUSED = b"r"  # the template or its data is at fault, in words
TOO_MUCH_MEMORY = b"m"
TOO_LONG = b"l"
BROKEN = b"b"  # it cannot render anything, in words

_LENGTH = struct.Struct(">I")
_MOST_WORDS = 4000
# The daemon's threads have 8 MB and more: what passes here does not overflow theirs.
_STACK_BYTES = 2**20
_REHEARSED_TOKENS = 64
# What leads on from one part of a JSON document to the next.
_ONWARD = b'",:{[}]'


def main() -> None:
    """Render until stdin ends."""
    bounds: dict[str, Any] = json.loads(sys.argv[1])
    sys.path[:] = bounds["path"]
    _bound_memory(bounds["memory_bytes"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the daemon's terminal: the daemon decides
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    try:
        import msgpack

        rendering = load_rendering()
    except Exception as error:  # noqa: BLE001 an installation can be broken in any way
        _send(answers, BROKEN, f"{type(error).__name__}: {error}"[:_MOST_WORDS].encode(errors="replace"))
        return
    _send(answers, READY, b"")
    while head := requests.read(_LENGTH.size):
        job = msgpack.unpackb(
            requests.read(_LENGTH.unpack(head)[0]), strict_map_key=False, unicode_errors="surrogatepass"
        )
        # The daemon looks at the time too. This is for when it is gone: nothing in a template can put the alarm off.
        signal.setitimer(signal.ITIMER_REAL, bounds["alarm_s"])
        kind, body = answer(rendering, job, bounds["text_bytes"])
        _send(answers, kind, body)
        if kind == TEXT and job.get("marked"):
            for index, message in job["marked"].items():
                job["messages"][index] = message
            _send(answers, *answer(rendering, job, bounds["text_bytes"]))
        signal.setitimer(signal.ITIMER_REAL, 0)


def answer(rendering: Any, job: dict[str, Any], text_bytes: int) -> tuple[bytes, bytes]:
    """Return the kind and the body of the answer to *job*; a text is at most *text_bytes* long."""
    try:
        text = work(rendering, job).encode()
    except MemoryError:
        return TOO_MUCH_MEMORY, b""
    except UnicodeEncodeError as error:
        # Half of a pair of UTF-16: no tokenizer takes it.
        return REFUSED, f"it renders the lone surrogate U+{ord(error.object[error.start]):04X}, no character".encode()
    except Exception as error:  # noqa: BLE001 a program that came with the model, on data that came with the request
        return REFUSED, str(error)[:_MOST_WORDS].encode(errors="replace")
    return (TEXT, text) if len(text) <= text_bytes else (TOO_LONG, b"")


def work(rendering: Any, job: dict[str, Any]) -> str:
    """Return the text that answers *job*."""
    if "grammar" in job:
        return rehearse(job)
    if "module" in job:
        return shape(job)
    return probe(rendering, job) if "probes" in job else render(rendering, job)


def probe(rendering: Any, job: dict[str, Any]) -> str:
    """Return the texts of small chats as a JSON list, with null for each that the template refuses."""
    texts: list[str | None] = []
    for chat in job["probes"]:
        whole = {
            "template": job["template"],
            "messages": chat["messages"],
            "tools": None,
            "generation": True,
            "continues": False,
            "variables": {**job["variables"], **chat["variables"]},
        }
        try:
            texts.append(render(rendering, whole))
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 a program that came with the model
            texts.append(None)
    return json.dumps(texts)


def render(rendering: Any, job: dict[str, Any]) -> str:
    """Return what `apply_chat_template` of a tokenizer of transformers returns; *variables* hold its special tokens."""
    # As it does: clients send null for "not there", and templates take it for a value.
    messages = [{key: value for key, value in message.items() if value is not None} for message in job["messages"]]
    texts, _ = rendering.render_jinja_template(
        conversations=[messages],
        tools=job["tools"],
        chat_template=job["template"],
        continue_final_message=job["continues"],
        add_generation_prompt=job["generation"],
        **job["variables"],
    )
    return str(texts[0])


def rehearse(job: dict[str, Any]) -> str:
    """Compile a grammar and write an answer's beginning by it; return nothing.

    Raises:
        ValueError: it cannot be compiled, or followed.
    """
    failures: list[Exception] = []

    def run() -> None:
        try:
            _follow(job)
        except Exception as error:  # noqa: BLE001 raised again, below
            failures.append(error)

    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return ""


def _follow(job: dict[str, Any]) -> None:
    from llguidance import LLMatcher, LLParserLimits

    alphabet, tokens = _alphabet(tuple(job["added"].items()))
    limits = LLParserLimits(**job["limits"])
    is_error, messages = LLMatcher.validate_grammar_with_warnings(job["grammar"], tokens, limits=limits)
    if is_error:
        raise ValueError(messages[0])
    matcher = LLMatcher(tokens, job["grammar"], log_level=0, limits=limits)
    # Some of the library's limits are for a step of an answer, and most grammars that reach one do so at once.
    for _ in range(_REHEARSED_TOKENS):
        mask = b"" if matcher.is_error() else matcher.compute_logit_bias()
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        first = len(mask) - len(mask.lstrip(b"\0"))
        if matcher.is_stopped() or first == len(mask):
            return
        onward = next((place for place in alphabet(_ONWARD) if mask[place]), first)
        if not matcher.consume_token(onward):
            raise ValueError(matcher.get_error())


@functools.lru_cache(maxsize=1)
def _alphabet(added: tuple[tuple[str, int], ...]) -> tuple[_Alphabet, Any]:
    from llguidance import LLTokenizer  # 40 ms

    alphabet = _Alphabet(dict(added))
    return alphabet, LLTokenizer(alphabet)  # type: ignore[arg-type]


class _Alphabet:
    """A tokenizer that has all bytes, and the added tokens of a model's at their places: all that grammars name."""

    is_tokenizer_wrapper = True

    def __init__(self, added: dict[str, int]) -> None:
        self._bytes_from = max([0, *added.values()]) + 2
        self.bos_token_id = None
        self.eos_token_id = self._bytes_from - 1
        special = {**added, "<|end|>": self.eos_token_id}
        self.special_token_ids = list(special.values())
        self.tokens = [b""] * self._bytes_from + [bytes([byte]) for byte in range(256)]
        for name, place in special.items():
            self.tokens[place] = name.encode()

    def __call__(self, text: str | bytes) -> list[int]:
        return [self._bytes_from + byte for byte in (text.encode() if isinstance(text, str) else text)]


def shape(job: dict[str, Any]) -> str:
    """Return the KV of a model (`CacheMaker.probe`) as JSON; its weights are named and never made."""
    if "mlx_lm" not in sys.modules:
        if not hasattr(sys.modules["numpy"], "ndarray"):  # the stand-in below
            del sys.modules["numpy"]
        found = importlib.util.find_spec("mlx_lm")
        if found is None:
            raise ImportError("mlx-lm is not installed")
        package = types.ModuleType("mlx_lm")  # itself it imports transformers, which takes seconds
        package.__path__ = list(found.submodule_search_locations or ())
        sys.modules["mlx_lm"] = package
    mx, utils, kv = map(importlib.import_module, ("mlx.core", "mlx.utils", "mlxd.engine.kv"))
    mx.set_default_device(mx.cpu)
    file = importlib.import_module(f"mlx_lm.models.{job['module']}")
    model = file.Model(file.ModelArgs.from_dict(job["config"]))
    is_cast = getattr(model, "cast_predicate", lambda _: True)
    dtype = getattr(mx, job["dtype"])
    floats = [
        (name, array.astype(dtype))
        for name, array in utils.tree_flatten(model.parameters())
        if is_cast(name) and mx.issubdtype(array.dtype, mx.floating)
    ]
    model.update(utils.tree_unflatten(floats))
    told, _ = kv.CacheMaker(model).probe()
    if not told.bytes_for(1):
        raise ValueError("a sequence that costs nothing")
    return json.dumps([told.groups, told.fixed_bytes])


def load_rendering() -> types.ModuleType:
    """Return `transformers.utils.chat_template_utils`, loaded without the rest of transformers where that is possible.

    As a part of its package it takes a second and 70 MB to import, for three things that rendering never needs.
    """
    found = importlib.util.find_spec("transformers")
    if found is None or not found.submodule_search_locations:
        raise ImportError("transformers is not installed")
    folder = os.path.join(found.submodule_search_locations[0], "utils")  # noqa: PTH118 pathlib takes 5 ms
    stand_ins: dict[str, dict[str, Any]] = {
        "transformers": {"__path__": []},
        "transformers.utils": {"__path__": [folder]},
        "transformers.utils.logging": {"get_logger": logging.getLogger},
        "transformers.utils.import_utils": {
            "is_jinja_available": lambda: True,
            "is_torch_available": lambda: False,
            "is_vision_available": lambda: False,
        },
        # Only to tell its scalars from plain ones, and nothing comes here but plain data.
        "numpy": {"generic": type("generic", (), {})},
    }
    for name, attributes in stand_ins.items():
        module = types.ModuleType(name)
        vars(module).update(attributes)
        sys.modules[name] = module
    try:
        module = importlib.import_module("transformers.utils.chat_template_utils")
        module.render_jinja_template([[]], chat_template="")
    except Exception:  # noqa: BLE001 a version that needs more of its package
        for name in [name for name in sys.modules if name in stand_ins or name.startswith("transformers")]:
            del sys.modules[name]
        module = importlib.import_module("transformers.utils.chat_template_utils")
    return module


def _bound_memory(memory_bytes: int) -> None:
    """Let Linux refuse more memory, and write no core file. On macOS, which has no such bound, the daemon looks."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _send(answers: BinaryIO, kind: bytes, body: bytes) -> None:
    answers.write(kind + _LENGTH.pack(len(body)))
    answers.write(body)
    answers.flush()


if __name__ == "__main__":
    main()
