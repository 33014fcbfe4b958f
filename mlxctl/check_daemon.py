"""What `mlxctl doctor` asks a running daemon: its version, sockets, settings, memory, models, limits, environment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxctl.client import Client
from mlxctl.connect import ABSENT
from mlxctl.finding import Finding, Verdict, fail, ok, warn
from mlxctl.output import show_path
from mlxd import __version__
from mlxd.protocol.errors import EXIT_UNREACHABLE, ControlError
from mlxd.protocol.paths import Home
from mlxd.protocol.units import count, show_bytes

Document = Mapping[str, Any]

# A few hundred clients at once are ordinary, and each is a file to the system; launchd begins with 256.
_FEW_FILES = 1024
_SHOWN_MODELS = 5
# Each may take as long as its timeouts allow.
_TESTED_PROVIDERS = 10
_HTTP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Answers:
    """What the daemon said; an operation that an older one does not know is an empty map."""

    status: Document
    process: Document
    models: Document
    diff: Document
    providers: Sequence[Document] = ()

    @classmethod
    def ask(cls, client: Client) -> Answers:
        """Ask all of it; while the cloud is on, have each provider called once, for its list of models."""
        status = _ask(client, "status")
        listed = (
            _ask(client, "cloud.provider.list").get("providers", ()) if status.get("cloud", {}).get("enabled") else ()
        )
        tested = [_ask(client, "cloud.provider.test", id=provider["id"]) for provider in listed[:_TESTED_PROVIDERS]]
        return cls(
            status,
            _ask(client, "daemon.show"),
            _ask(client, "model.list"),
            _ask(client, "settings.diff"),
            [answer for answer in tested if answer],
        )


def _ask(client: Client, operation: str, **params: Any) -> Document:
    try:
        return client.request(operation, params).result
    except ControlError as error:
        if error.exit_code == EXIT_UNREACHABLE:
            raise
        return {}


def check_absence(error: ControlError) -> Iterator[Finding]:
    """Say why no daemon could be asked."""
    what, *why = error.message.splitlines()
    is_absent = error.code in ABSENT
    found = warn if is_absent else fail
    what = "no daemon is running" if is_absent else what
    yield found("daemon", what, why="; ".join(why) or None, hint="mlxctl start" if is_absent else error.hint)


def check_daemon(answers: Answers) -> Iterator[Finding]:
    """Look at all that the daemon answered."""
    yield from _check_version(answers)
    yield from _check_http(answers.status)
    yield from _check_providers(answers)
    yield from _check_settings(answers)
    yield from _check_memory(answers)
    yield from _check_models(answers.models)
    yield from _check_crashes(answers.status)
    yield from _check_problems(answers.status)
    yield from _check_open_files(answers.process)


def _check_version(answers: Answers) -> Iterator[Finding]:
    status, python = answers.status, answers.process.get("python")
    what = f"mlxd {status['version']} runs, pid {status['pid']}"
    if status["version"] != __version__:
        yield warn("daemon", f"{__version__} installed, {status['version']} running", hint="mlxctl restart")
    elif python is not None and not os.access(python, os.X_OK):
        yield warn(
            "daemon",
            f"{what}, from an interpreter that is gone: {python}",
            why="it runs on until it ends, and nothing of its installation is left",
            hint="mlxctl restart",
        )
    else:
        yield ok("daemon", what)


def _check_http(status: Document) -> Iterator[Finding]:
    http = status["http"]
    if http["url"] is not None:
        trouble = try_address(http["url"])
        if trouble is None:
            yield ok("http", f"answers on {http['url']}")
        else:
            yield fail(
                "http",
                f"listens on {http['url']}, and a request to it failed: {trouble}",
                why="clients on this machine have no other way in",
                hint="mlxctl logs --level warning\nmlxctl restart",
            )
    elif http["problem"] is None:
        yield warn("http", "is not listening yet", hint="mlxctl status")
    else:
        yield fail("http", http["problem"], hint="mlxctl config set http.port PORT")


def try_address(url: str) -> str | None:
    """Send a request to the HTTP server, as a client would; return what went wrong."""
    import http.client  # late: no other verb needs it
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parts.hostname or "", parts.hostname or "")  # noqa: S104
    connection = http.client.HTTPConnection(host, parts.port, timeout=_HTTP_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    return None if status == http.client.OK else f"GET /health was answered with status {status}"


def _check_providers(answers: Answers) -> Iterator[Finding]:
    """Say what a call of each provider, made by the daemon with its key, came to."""
    for tested in answers.providers:
        if tested["ok"]:
            yield ok("cloud", f"provider {tested['id']} answers, in {tested['ms']} ms")
        else:
            yield fail(
                "cloud",
                f"provider {tested['id']} cannot be used: {tested['reason']}",
                hint=f"mlxctl cloud provider test {tested['id']}",
            )


def _check_settings(answers: Answers) -> Iterator[Finding]:
    config, diff = answers.status["config"], answers.diff
    shown = show_path(config["path"])
    overlay, pending = ([change["key"] for change in diff.get(name) or ()] for name in ("overlay", "pending"))
    if config["problem"] is not None:
        yield fail(
            "settings",
            config["problem"]["msg"],
            why="what is in force is older than the file, and no setting can be changed",
            hint=config["problem"].get("hint") or "fix the file; the daemon reads it again by itself",
        )
    elif pending:
        yield warn(
            "settings", f"{shown} differs from what is in force: {', '.join(pending)}", hint="mlxctl config reload"
        )
    else:
        yield ok("settings", f"{shown} is in force, generation {answers.status['gen']}")
    if overlay:
        yield warn(
            "settings",
            f"not in the file: {', '.join(overlay)}",
            why="these are runtime-only and gone after a restart",
            hint="mlxctl config diff",
        )


def _check_memory(answers: Answers) -> Iterator[Finding]:
    memory, usable_bytes = answers.status["pool"]["memory"], answers.process.get("usable_bytes")
    what = f"limit {show_bytes(memory['limit_bytes'])}, {show_bytes(memory['reserved_bytes'])} reserved"
    if usable_bytes is None:
        yield ok("memory", what)
    elif memory["limit_bytes"] > usable_bytes:
        yield warn(
            "memory",
            f"the limit {show_bytes(memory['limit_bytes'])} is over the usable {show_bytes(usable_bytes)}",
            why="the system will swap, or end programs",
            hint="mlxctl pool set-memory auto",
        )
    else:
        yield ok("memory", f"{what}, {show_bytes(usable_bytes)} usable")


def _check_models(models: Document) -> Iterator[Finding]:
    listed = models.get("models", [])
    broken = [model for model in listed if model.get("problem") or model.get("last_error")]
    for model in broken[:_SHOWN_MODELS]:
        yield warn(
            "models",
            f"{model['id']}: {model.get('problem') or model['last_error']}",
            hint=f"mlxctl model show {model['id']}",
        )
    if len(broken) > _SHOWN_MODELS:
        yield warn("models", f"{len(broken) - _SHOWN_MODELS} more have a problem", hint="mlxctl model list")
    if not listed:
        yield warn("models", "there is none on this disk", hint="mlxctl model pull starter")
    elif not broken:
        yield ok("models", f"{count(len(listed), 'model')} on this disk, none with a known problem")


def _check_crashes(status: Document) -> Iterator[Finding]:
    crashes = status.get("crashes")
    if crashes is not None and crashes["last_hour"]:
        yield warn(
            "crashes",
            f"the daemon ended without a shutdown {count(crashes['last_hour'], 'time')} in the last hour",
            why="it was killed, or a model's load or answer took it down",
            hint="mlxctl logs --level warning",
        )
    elif crashes is not None:
        yield ok("crashes", "none in the last hour")


def _check_problems(status: Document) -> Iterator[Finding]:
    """Yield the daemon's own list, without what has a check of its own."""
    known = [status["http"]["problem"], (status["config"]["problem"] or {}).get("msg")]
    for problem in status["problems"]:
        if not any(text is not None and text in problem for text in known):
            yield fail("problem", problem, hint="mlxctl status")


def _check_open_files(process: Document) -> Iterator[Finding]:
    most = process.get("open_files")
    if most is not None and most < _FEW_FILES:
        yield warn(
            "open files",
            f"the daemon may have {most} open at once",
            why="each connection is one, and so is each file of a model that is being loaded",
            hint="ulimit -n 4096 in the shell, then mlxctl restart",
        )
    elif process:
        yield ok("open files", "no limit" if most is None else f"at most {most} at once")


def check_environment(process: Document, home: Home, shell: Mapping[str, str]) -> Iterator[Finding]:
    """Compare what the daemon sees with what this *shell* sees: a service reads no shell files."""
    seen = process.get("environment")
    if seen is None:
        return
    differences = []
    if Path(process["home"]) != home.root:
        differences.append(f"the daemon's home is {process['home']}, this shell's {home.root}")
    if shell.get("HOME") is not None and seen.get("HOME") != shell["HOME"]:
        differences.append(f"HOME is {seen.get('HOME')} there and {shell['HOME']} here")
    if shell.get("HF_HOME") and seen.get("HF_HOME") != shell["HF_HOME"]:
        differences.append(f"HF_HOME is {seen.get('HF_HOME', 'not set')} there and {shell['HF_HOME']} here")
    for difference in differences:
        yield warn(
            "environment",
            difference,
            why="where models and settings lie is for settings to say, not for a shell",
            hint="mlxctl config get catalog.paths",
        )
    if not differences:
        what = "the daemon has the home folders of this shell"
        yield Finding("environment", Verdict.OK, what, why=f"its PATH: {seen.get('PATH', 'not set')}")
