"""What is computed of a prompt that was seen before: mlxd beside mlx_lm.server, on one tiny model per kind of cache."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from tests.bench.process import running_mlx_lm_server
from tests.support.adapter import write_adapter
from tests.support.daemon import RealDaemon
from tests.support.every_architecture import config_of, make_any
from tests.support.tiny_model import END, tiny_vocabulary, write_tiny_model

# By what the table calls it: the type, its precision, and whether an adapter is on it.
MODELS: dict[str, tuple[str, str, bool]] = {
    "qwen3": ("qwen3", "float32", False),
    "deepseek_v3": ("deepseek_v3", "float32", False),
    "gpt_oss": ("gpt_oss", "float32", False),
    "gemma3_text": ("gemma3_text", "float32", False),
    "qwen3_next": ("qwen3_next", "float32", False),
    "qwen3_5": ("qwen3_5", "float32", False),
    "nemotron_h": ("nemotron_h", "float32", False),
    "lfm2": ("lfm2", "float32", False),
    "qwen3, 4 bits": ("qwen3", "4 bits", False),
    "qwen3 and an adapter": ("qwen3", "float32", True),
}
SCENARIOS = ("turns 2-10", "tool round", "other question", "edited", "again", "text")
SYSTEMS = ("mlx_lm.server", "mlxd")
TURNS = 10
HEAD_TOKENS = 4000
TOGETHER = 8

_MAX_TOKENS = 8
_SYSTEM_TOKENS = 3000
_CONTEXT = 8192
_TIMEOUT_S = 300
# What a server that cannot do it ends in: refused, gone, cut off, or an answer that is no JSON.
_FAILURES = (RuntimeError, OSError, http.client.HTTPException, ValueError)
# In the manner of reasoning models: thoughts are opened by the template, and earlier ones are not in the prompt.
_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' + messages[0]['content'] + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{% if not (tools and loop.first) %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "{% for tool_call in message.tool_calls or [] %}<tool_call>\n"
    "{{ {'name': tool_call.function.name, 'arguments': tool_call.function.arguments} | tojson }}"
    "\n</tool_call>{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if false %}{{ tool_call.name }}{% endif %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
_TOOLS = [
    {
        "type": "function",
        "function": {"name": "read", "description": "Read a file.", "parameters": {"type": "object", "properties": {}}},
    }
]

Figures = dict[str, dict[str, list[float]]]


@dataclass(frozen=True, slots=True)
class Answered:
    """One request."""

    prompt_tokens: int
    cached_tokens: int
    first_s: float  # from the request to the first piece of the answer
    total_s: float

    @property
    def share(self) -> float:
        """Of the prompt, out of the cache."""
        return self.cached_tokens / self.prompt_tokens


class Server:
    """One system and model."""

    def __init__(self, host: str, port: int, model: str) -> None:
        """Take the address; each request opens a connection."""
        self._host, self._port, self._model = host, port, model

    def ask(self, path: str, **body: Any) -> Answered:
        """Stream an answer.

        Raises:
            RuntimeError: the server refused.
        """
        body |= {"model": self._model, "max_tokens": _MAX_TOKENS, "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        with closing(connection):
            started_s = time.perf_counter()
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {response.read()[:300]!r}")
            first_s, usage = 0.0, None
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                piece = json.loads(line[6:])
                usage = piece.get("usage") or usage
                if first_s == 0 and any(_has_text(choice) for choice in piece["choices"]):
                    first_s = time.perf_counter() - started_s
            total_s = time.perf_counter() - started_s
        if usage is None:
            raise RuntimeError("the stream ended without its usage")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Answered(usage["prompt_tokens"], cached, first_s or total_s, total_s)

    def chat(self, messages: list[dict[str, Any]]) -> Answered:
        """Ask for the next message."""
        return self.ask("/v1/chat/completions", messages=messages, tools=_TOOLS)


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    names = ("content", "reasoning", "reasoning_content", "tool_calls")
    return bool(choice.get("text") or any(delta.get(name) for name in names))


def write_models(folder: Path, names: list[str]) -> None:
    """Write the models, and beside those with an adapter the adapter."""
    for name in names:
        model_type, precision, has_adapter = MODELS[name]
        model = write_tiny_model(folder / _folder(name), context=_CONTEXT, tools=True, open_thinking=True)
        vocabulary = tiny_vocabulary(thinking=True, tags=("<tool_call>", "</tool_call>"))
        weights = dict(tree_flatten(make_any(model_type, precision).parameters()))
        mx.save_safetensors(str(model / "model.safetensors"), weights, {"format": "mlx"})
        config = {key: value for key, value in config_of(model_type).items() if value is not None}
        config |= {"eos_token_id": vocabulary[END], "max_position_embeddings": _CONTEXT}
        if precision == "4 bits":
            config["quantization"] = {"group_size": 32, "bits": 4}
        (model / "config.json").write_text(json.dumps(config))
        tokenizer_config = json.loads((model / "tokenizer_config.json").read_text())
        (model / "tokenizer_config.json").write_text(json.dumps(tokenizer_config | {"chat_template": _TEMPLATE}))
        if has_adapter:
            config = config_of(model_type)
            write_adapter(
                folder / f"{_folder(name)}-lora",
                _folder(name),
                layers=config["num_hidden_layers"],
                width=config["hidden_size"],
                query_width=config["num_attention_heads"] * config["head_dim"],
                kv_width=config["num_key_value_heads"] * config["head_dim"],
            )


def _folder(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def measure(daemon: RealDaemon, host: str, port: int, models: Path, names: list[str], rounds: int) -> str:
    """Measure each model on both systems, in turns, and return the tables."""
    shares: dict[str, Figures] = {}
    times: dict[str, Figures] = {}
    together: dict[str, list[tuple[float, float]]] = defaultdict(list)
    failures: dict[str, str] = {}  # of mlx_lm.server, by model; one of mlxd ends the run

    def attempt(name: str, servers: dict[str, Server], system: str, seed: str) -> None:
        try:
            _session(servers[system], seed, shares[name], times[name], system)
            if name == names[0]:
                together[system].append(_together(servers[system], seed))
        except _FAILURES as error:
            if system == "mlxd":
                raise
            failures[name] = _last_line(error)
            del servers[system]

    for name in names:
        shares[name], times[name] = _empty(), _empty()
        with _servers(daemon, host, port, models, name, failures) as servers:
            for number in range(rounds):
                for system in (SYSTEMS, SYSTEMS[::-1])[number % 2]:
                    if system in servers:
                        attempt(name, servers, system, f"{number}{system}")
        print(f"{name} done", file=sys.stderr, flush=True)
    notes = "".join(f"\n\n`mlx_lm.server` fails on {name}: {reason}" for name, reason in failures.items())
    return f"{_format(shares, times, failures)}{notes}\n\n{_format_together(names[0], together, failures)}"


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:300]


def _empty() -> Figures:
    return defaultdict(lambda: defaultdict(list))


@contextmanager
def _servers(
    daemon: RealDaemon, host: str, port: int, models: Path, name: str, failures: dict[str, str]
) -> Iterator[dict[str, Server]]:
    folder = models / _folder(name)
    adapter = models / f"{_folder(name)}-lora"
    extra = ("--adapter-path", str(adapter)) if adapter.exists() else ()
    own = f"{folder.name}+{adapter.name}" if adapter.exists() else folder.name
    daemon.mlxctl("model", "load", own, "--wait")
    servers = {"mlxd": Server(host, port, own)}
    with ExitStack() as stack:
        try:
            theirs = running_mlx_lm_server(folder, models.parent / "mlx_lm_prompts.log", *extra)
            servers["mlx_lm.server"] = Server("127.0.0.1", stack.enter_context(theirs)[0], "default_model")
        except RuntimeError as error:
            failures[name] = _last_line(error)
        yield servers
    daemon.mlxctl("model", "unload", own)


def _session(server: Server, seed: str, shares: Figures, times: Figures, system: str) -> None:
    """Live one session, whose head no other has had."""
    system_message = {"role": "system", "content": _words(f"{seed} system", _SYSTEM_TOKENS)}
    messages = [system_message]
    began_s = time.perf_counter()
    for turn in range(1, TURNS + 1):
        messages.append({"role": "user", "content": _words(f"{seed} question {turn}", 40)})
        answered = server.chat(messages)
        times["cold" if turn == 1 else "warm"][system].append(answered.first_s)
        if turn > 1:
            shares["turns 2-10"][system].append(answered.share)
        last = list(messages)
        messages.append({"role": "assistant", "content": _words(f"{seed} answer {turn}", 30)})
    times["session"][system].append(time.perf_counter() - began_s)
    call = {"id": "c1", "type": "function", "function": {"name": "read", "arguments": '{"path": "a"}'}}
    rounds: dict[str, Callable[[], Answered]] = {
        "again": lambda: server.chat(last),
        "edited": lambda: server.chat([*last[:-1], {"role": "user", "content": _words(f"{seed} other {TURNS}", 40)}]),
        "tool round": lambda: server.chat(
            [
                *last,
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": _words(f"{seed} result", 60)},
            ]
        ),
        "other question": lambda: server.chat([system_message, {"role": "user", "content": f"{seed} What else?"}]),
    }
    for name, ask in rounds.items():
        shares[name][system].append(ask().share)
    text = _words(f"{seed} text", 1000)
    server.ask("/v1/completions", prompt=text + "One ending of it.")
    shares["text"][system].append(server.ask("/v1/completions", prompt=text + "Another one.").share)


def _together(server: Server, seed: str) -> tuple[float, float]:
    """Return how many heads were computed for eight requests at once, and how much longer the slowest one waited."""

    def ask(head: str, question: int) -> Answered:
        content = _words(f"{seed} {head}", HEAD_TOKENS)
        question_text = f"{question}. What does it say?"
        return server.chat([{"role": "system", "content": content}, {"role": "user", "content": question_text}])

    alone = ask("one", 0)
    answers: list[Answered] = []
    threads = [threading.Thread(target=lambda n=n: answers.append(ask("eight", n))) for n in range(TOGETHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(answers) < TOGETHER:
        raise RuntimeError(f"{TOGETHER - len(answers)} of {TOGETHER} requests failed")
    computed = sum(answer.prompt_tokens - answer.cached_tokens for answer in answers)
    return computed / alone.prompt_tokens, max(answer.first_s for answer in answers) / alone.first_s


def _words(seed: str, length: int) -> str:
    """Return a text of so many characters, each a token, that begins like no text of another seed."""
    text = f"{seed}: "
    while len(text) < length:
        text += f"{seed} has {len(text)} characters. "
    return text[:length]


def _format(shares: dict[str, Figures], times: dict[str, Figures], failures: dict[str, str]) -> str:
    head = ["", *SCENARIOS, "TTFT, warm : cold", "TTFT, warm", "ten turns"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name in shares:
        systems = ["mlxd"] if name in failures else ["mlxd", "mlx_lm.server"]
        cells = [name]
        for scenario in SCENARIOS:
            lowest = [f"{min(shares[name][scenario][system]):.2f}" for system in systems]
            cells.append(f"**{lowest[0]}** ({lowest[1] if len(lowest) > 1 else 'fails'})")
        warm, cold, session = (
            {system: median(times[name][kind][system]) for system in systems} for kind in ("warm", "cold", "session")
        )
        of_cold = [f"{warm[system] / cold[system]:.2f}" for system in systems]
        cells.append(f"{of_cold[0]} ({of_cold[1] if len(of_cold) > 1 else 'fails'})")
        cells += [
            f"**{figures['mlx_lm.server'] / figures['mlxd']:.2f}**" if len(systems) > 1 else "-"
            for figures in (warm, session)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_together(name: str, together: dict[str, list[tuple[float, float]]], failures: dict[str, str]) -> str:
    lines = [
        f"| {TOGETHER} requests at once, {name} | prompts computed | slowest TTFT : one alone |",
        "|---|---:|---:|",
    ]
    for system in SYSTEMS:
        if system == "mlx_lm.server" and name in failures:
            lines.append(f"| {system} | fails | fails |")
            continue
        computed = median(figures[0] for figures in together[system])
        slowest = median(figures[1] for figures in together[system])
        lines.append(f"| {system} | {computed:.2f} | {slowest:.2f} |")
    return "\n".join(lines)
