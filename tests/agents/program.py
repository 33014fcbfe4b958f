"""The three programs: where npm puts each, how it is pointed at a server, and the steps of its session."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.agents.proxy import Call

MODEL = "agent"
# Codex knows models of this name: it sends them tools of other kinds, in other places.
ALIAS = "gpt-6.2-sol"
_SOURCE = 'print("hello")\n'
_READ = {"command": "cat main.py", "description": "Read main.py"}


@dataclass(frozen=True, slots=True)
class Step:
    """One run of a program: its arguments, and the tools that the model calls in it, one in each answer."""

    name: str
    arguments: tuple[str, ...]
    calls: tuple[str, ...] = ()
    has_image: bool = False  # the program sends one


@dataclass(frozen=True, slots=True)
class Program:
    """One coding agent.

    Args:
        name: of its npm package, without the owner, and what sets it apart.
        binary: where that is, below `node_modules`; some packages bring several builds.
        configure: writes its configuration into its home, given the URL of the server, and returns its environment.
        calls: the tools that the model may call, each with the only arguments it may give, in a working directory.
        steps: its session.
    """

    name: str
    binary: str
    configure: Callable[[Path, str], dict[str, str]]
    calls: Callable[[Path], list[Call]]
    steps: tuple[Step, ...]

    def path(self, packages: Path) -> Path:
        """Return its binary."""
        found = sorted((packages / "node_modules").glob(self.binary), key=lambda path: len(str(path)))
        if not found:
            raise FileNotFoundError(f"{self.name} has no binary for this machine: {self.binary}")
        return found[0]

    def environment(self, home: Path, url: str) -> dict[str, str]:
        """Return all of its environment; its home is made."""
        home.mkdir(parents=True, exist_ok=True)
        kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
        return {**kept, "HOME": str(home), "LANG": "C.UTF-8", "TERM": "dumb", **self.configure(home, url)}


def write_work(folder: Path) -> Path:
    """Make the folder that a program works in."""
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(_SOURCE)
    (folder / "dot.png").write_bytes(_png())
    return folder


def _png(side: int = 32) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(x * 8 % 256 for x in range(side * 3)) for _ in range(side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _configure_claude(_home: Path, url: str) -> dict[str, str]:
    names = ("ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL")
    off = ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_TELEMETRY", "DISABLE_AUTOUPDATER")
    return {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": "unused",
        **dict.fromkeys(names, MODEL),
        **dict.fromkeys((*off, "DISABLE_ERROR_REPORTING"), "1"),
    }


def _configure_codex(home: Path, url: str, model: str = MODEL) -> dict[str, str]:
    (home / ".codex").mkdir(exist_ok=True)
    lines = [
        f'model = "{model}"',
        'model_provider = "mlxd"',
        "[model_providers.mlxd]",
        'name = "mlxd"',
        f'base_url = "{url}/v1"',
        'wire_api = "responses"',
        "request_max_retries = 0",
        "stream_max_retries = 0",
    ]
    (home / ".codex" / "config.toml").write_text("\n".join(lines))
    return {}


def _configure_opencode(home: Path, url: str) -> dict[str, str]:
    model: dict[str, Any] = {
        "limit": {"context": 131_072, "output": 32_000},
        "modalities": {"input": ["text", "image"], "output": ["text"]},
        "attachment": True,
        "tool_call": True,
    }
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{url}/v1", "apiKey": "unused"},
        "models": {MODEL: model},
    }
    settings = {
        "autoupdate": False,
        "share": "disabled",
        "permission": "allow",
        "model": f"mlxd/{MODEL}",
        "small_model": f"mlxd/{MODEL}",
        "provider": {"mlxd": provider},
    }
    folder = home / ".config" / "opencode"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "opencode.json").write_text(json.dumps(settings))
    off = ("OPENCODE_DISABLE_AUTOUPDATE", "OPENCODE_DISABLE_MODELS_FETCH", "OPENCODE_DISABLE_LSP_DOWNLOAD")
    return dict.fromkeys(off, "1")


def _claude_step(name: str, says: str, *calls: str, resumed: bool = True, has_image: bool = False) -> Step:
    session = ("-c",) if resumed else ()
    return Step(name, ("-p", says, *session, "--allowedTools", "Bash", "Read", "NotebookEdit"), calls, has_image)


def _codex_step(name: str, says: str, *calls: str, resumed: bool = True, **options: Any) -> Step:
    given = ("-i", options["image"]) if "image" in options else ()
    free = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    session = ("resume", "--last") if resumed else ()
    has_image = bool(given) or "view_image" in calls
    return Step(name, ("exec", *session, *free, says, *given), calls, has_image)


def _opencode_step(name: str, says: str, *calls: str, resumed: bool = True, **options: Any) -> Step:
    given = ("-f", options["image"]) if "image" in options else ()
    return Step(name, ("run", says, *(("-c",) if resumed else ()), *given), calls, bool(given) or "read" in calls)


PROGRAMS = (
    Program(
        name="claude-code",
        binary="@anthropic-ai/claude-code-*/claude",
        configure=_configure_claude,
        calls=lambda work: [
            Call("Bash", _READ),
            Call("Read", {"file_path": str(work / "dot.png")}),
            Call("ToolSearch", {"query": "select:NotebookEdit", "max_results": 1}),
            Call("NotebookEdit", {"notebook_path": str(work / "main.py"), "new_source": "hello"}),
        ],
        steps=(
            _claude_step("tool", "what does main.py say?", "Bash", "Bash", resumed=False),
            _claude_step("resumed", "and again?", "Bash"),
            _claude_step("image", "what is in dot.png?", "Read", has_image=True),
            _claude_step("tool found by search", "search for a tool", "ToolSearch", "NotebookEdit"),
            _claude_step("new session", "what does main.py say today?", "Bash", resumed=False),
        ),
    ),
    Program(
        name="codex",
        binary="@openai/codex-*/vendor/*/bin/codex",
        configure=_configure_codex,
        calls=lambda work: [
            Call("exec_command", {"cmd": "cat main.py"}),
            Call("view_image", {"path": str(work / "dot.png")}),
            Call("close_agent", {"target": "nobody"}),
        ],
        steps=(
            _codex_step("tool", "what does main.py say?", "exec_command", "exec_command", resumed=False),
            _codex_step("resumed", "and again?", "exec_command"),
            _codex_step("image", "what is in dot.png?", "view_image"),
            _codex_step("image of the user", "what is in it?", image="dot.png"),
            _codex_step("tool in a namespace", "close the agent", "close_agent"),
            _codex_step("new session", "what does main.py say today?", "exec_command", resumed=False),
        ),
    ),
    Program(
        name="codex as gpt",
        binary="@openai/codex-*/vendor/*/bin/codex",
        configure=partial(_configure_codex, model=ALIAS),
        calls=lambda _work: [
            Call("exec", {"input": 'text(await tools.exec_command({cmd: "cat main.py"}))'}),
            Call("list_agents", {}),
        ],
        steps=(
            _codex_step("custom tool", "what does main.py say?", "exec", "exec", resumed=False),
            _codex_step("resumed", "and again?", "exec", "list_agents"),
            _codex_step("image of the user", "what is in it?", image="dot.png"),
        ),
    ),
    Program(
        name="opencode",
        binary="opencode-*/bin/opencode",
        configure=_configure_opencode,
        calls=lambda work: [Call("bash", _READ), Call("read", {"filePath": str(work / "dot.png")})],
        steps=(
            _opencode_step("tool", "what does main.py say?", "bash", "bash", resumed=False),
            _opencode_step("resumed", "and again?", "bash"),
            _opencode_step("image", "what is in dot.png?", "read"),
            _opencode_step("image of the user", "what is in it?", image="dot.png"),
            _opencode_step("new session", "what does main.py say today?", "bash", resumed=False),
        ),
    ),
)
