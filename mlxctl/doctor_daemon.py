"""The part of `mlxctl doctor` that asks a running daemon: its own problems, and those it cannot judge by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxctl.client import Client
from mlxctl.finding import Finding, fail, ok, warn
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


def check_daemon(answers: Answers) -> Iterator[Finding]:
    """Look at all that the daemon answered; what it knows to be a problem is told in its own words."""
    for problem in answers.status["problems"]:
        yield fail("problem", problem, hint="mlxctl status")
    yield _check_version(answers)
    yield from _check_http(answers.status["http"])
    yield from _check_providers(answers.providers)
    yield from _check_settings(answers)
    yield _check_memory(answers)
    yield from _check_models(answers.models)
    yield from _check_crashes(answers.status)
    yield from _check_open_files(answers.process)


def _check_version(answers: Answers) -> Finding:
    status, python = answers.status, answers.process.get("python")
    what = f"mlxd {status['version']} runs, pid {status['pid']}"
    if status["version"] != __version__:
        return warn("daemon", f"{__version__} installed, {status['version']} running", hint="mlxctl restart")
    if python is None or os.access(python, os.X_OK):
        return ok("daemon", what)
    why = "it runs on until it ends, and nothing of its installation is left"
    return warn("daemon", f"{what}, from an interpreter that is gone: {python}", why, "mlxctl restart")


def _check_http(http: Document) -> Iterator[Finding]:
    url = http["url"]
    if url is None:
        if http["problem"] is None:
            yield warn("http", "is not listening yet", hint="mlxctl status")
    elif (trouble := try_address(url)) is None:
        yield ok("http", f"answers on {url}")
    else:
        yield fail(
            "http",
            f"listens on {url}, and a request to it failed: {trouble}",
            "clients on this machine have no other way in",
            "mlxctl logs --level warning\nmlxctl restart",
        )


def try_address(url: str) -> str | None:
    """Send a request to the HTTP server, as a client would; return what went wrong."""
    from http.client import HTTPException  # late: no other verb needs it

    from mlxctl.chat_client import Server

    try:
        with Server(url).open("GET", "/health", _HTTP_TIMEOUT_S):
            return None
    except ControlError as error:
        return error.message
    except (OSError, HTTPException) as error:
        return str(error) or type(error).__name__


def _check_providers(tests: Sequence[Document]) -> Iterator[Finding]:
    """Say what a call of each provider, made by the daemon with its key, came to."""
    for tested in tests:
        name = f"provider {tested['id']}"
        if tested["ok"]:
            yield ok("cloud", f"{name} answers, in {tested['ms']} ms")
        else:
            hint = f"mlxctl cloud provider test {tested['id']}"
            yield fail("cloud", f"{name} cannot be used: {tested['reason']}", hint=hint)


def _check_settings(answers: Answers) -> Iterator[Finding]:
    config = answers.status["config"]
    shown = show_path(config["path"])
    overlay, pending = ([change["key"] for change in answers.diff.get(name) or ()] for name in ("overlay", "pending"))
    if config["problem"] is None and pending:
        what = f"{shown} differs from what is in force: {', '.join(pending)}"
        yield warn("settings", what, hint="mlxctl config reload")
    elif config["problem"] is None:
        yield ok("settings", f"{shown} is in force, generation {answers.status['gen']}")
    if overlay:
        why = "these are runtime-only and gone after a restart"
        yield warn("settings", f"not in the file: {', '.join(overlay)}", why, "mlxctl config diff")


def _check_memory(answers: Answers) -> Finding:
    memory, usable_bytes = answers.status["pool"]["memory"], answers.process.get("usable_bytes")
    limit = show_bytes(memory["limit_bytes"])
    if usable_bytes is not None and memory["limit_bytes"] > usable_bytes:
        what = f"the limit {limit} is over the usable {show_bytes(usable_bytes)}"
        return warn("memory", what, "the system will swap, or end programs", "mlxctl pool set-memory auto")
    what = f"limit {limit}, {show_bytes(memory['reserved_bytes'])} reserved"
    return ok("memory", what if usable_bytes is None else f"{what}, {show_bytes(usable_bytes)} usable")


def _check_models(models: Document) -> Iterator[Finding]:
    listed = models.get("models", [])
    broken = [model for model in listed if model.get("problem") or model.get("last_error")]
    for model in broken[:_SHOWN_MODELS]:
        what = f"{model['id']}: {model.get('problem') or model['last_error']}"
        yield warn("models", what, hint=f"mlxctl model show {model['id']}")
    if len(broken) > _SHOWN_MODELS:
        yield warn("models", f"{len(broken) - _SHOWN_MODELS} more have a problem", hint="mlxctl model list")
    if not listed:
        yield warn("models", "there is none on this disk", hint="mlxctl model pull starter")
    elif not broken:
        yield ok("models", f"{count(len(listed), 'model')} on this disk, none with a known problem")


def _check_crashes(status: Document) -> Iterator[Finding]:
    crashes = status.get("crashes")
    if crashes is not None and crashes["last_hour"]:
        what = f"the daemon ended without a shutdown {count(crashes['last_hour'], 'time')} in the last hour"
        why = "it was killed, or a model's load or answer took it down"
        yield warn("crashes", what, why, "mlxctl logs --level warning")
    elif crashes is not None:
        yield ok("crashes", "none in the last hour")


def _check_open_files(process: Document) -> Iterator[Finding]:
    most = process.get("open_files")
    if most is not None and most < _FEW_FILES:
        why = "each connection is one, and so is each file of a model that is being loaded"
        hint = "ulimit -n 4096 in the shell, then mlxctl restart"
        yield warn("open files", f"the daemon may have {most} open at once", why, hint)
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
    why = "where models and settings lie is for settings to say, not for a shell"
    yield from (warn("environment", what, why, "mlxctl config get catalog.paths") for what in differences)
    if not differences:
        what = "the daemon has the home folders of this shell"
        yield ok("environment", what, f"its PATH: {seen.get('PATH', 'not set')}")
