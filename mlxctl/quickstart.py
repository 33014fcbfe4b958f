"""`mlxctl quickstart`: from nothing to an answer. Every step is left out that is done already."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import typer

from mlxctl import download, output, process
from mlxctl.call import Call
from mlxctl.chat import find_server
from mlxctl.chat_client import Answer, Server, list_models, print_answer
from mlxctl.client import Client
from mlxctl.daemon import begin
from mlxctl.model import format_pulled
from mlxctl.verb import DEFAULT_WAIT_S, Verb, make_app
from mlxctl.view import format_status
from mlxd.protocol.errors import EXIT_NOT_FOUND, ControlError

app = make_app("From nothing to an answer.")

QUESTION = "What is the capital of France?"


@app.command("quickstart", cls=Verb)
def quickstart(ctx: typer.Context) -> None:
    """Fetch a small model, start the daemon and ask it something; safe to repeat."""
    call = Call.of(ctx)
    call.note("1/5 model")
    pulled = download.run(call, ["pull", "starter"])
    call.note(f"    {format_pulled(pulled)}")
    call.note("2/5 daemon")
    with _ensure_daemon(call) as daemon:
        server = find_server(daemon)
        call.note(f"    pid {daemon.pid}, {server.url}/v1")
        _load(call, server, str(pulled["id"]))
        answer = _ask(call, server, str(pulled["id"]))
        status = daemon.request("status").result
    if call.options.json:
        output.print_json({"model": answer.model, "content": answer.content, "usage": answer.usage, "status": status})
        return
    call.note("5/5 status")
    output.print_text(_indent(format_status(status)))
    output.print_text(format_next(server.url, answer.model, find_program()))


def format_next(url: str, model: str, program: str) -> str:
    """Return what to try next."""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    width = len(f"{program} pool set-memory 4GB")
    verbs = {
        f"{program} chat": "ask from the command line",
        f"{program} pool set-memory 4GB": "limit what models may use: at once, and for good",
        f"{program} model list": "what is on this disk; `model pull ORG/NAME` fetches more",
    }
    return "\n".join(
        [
            "",
            "Try next",
            "",
            "  with curl:",
            f"    curl {url}/v1/chat/completions -H 'content-type: application/json' \\",
            f"      -d '{body}'",
            "",
            "  with the OpenAI client (pip install openai):",
            "    from openai import OpenAI",
            f'    client = OpenAI(base_url="{url}/v1", api_key="unused")',
            '    messages = [{"role": "user", "content": "Hello!"}]',
            f'    print(client.chat.completions.create(model="{model}", messages=messages).choices[0].message.content)',
            "",
            "  with mlxctl:",
            *(f"    {verb:<{width}}  {what}" for verb, what in verbs.items()),
            "",
            f"  stop the daemon: {program} stop",
        ]
    )


def find_program() -> str:
    """Return how mlxctl is called from here: its name when the shell finds it, else the way to it."""
    beside = Path(sys.executable).with_name("mlxctl")
    found = shutil.which("mlxctl")
    if found is not None and (not beside.exists() or Path(found).samefile(beside)):
        return "mlxctl"
    if not beside.exists():
        return f"{sys.executable} -m mlxctl"
    near = os.path.relpath(beside)
    return str(beside) if near.startswith("..") else near


def _ensure_daemon(call: Call) -> Client:
    running = process.find_daemon(call.socket, call.options.timeout_s)
    return running if running is not None else begin(call)


def _load(call: Call, server: Server, model: str) -> None:
    """Load the model with progress: the first time, MLX is imported too, which takes a while."""
    if model not in {entry["id"] for entry in list_models(server, call.options.timeout_s)}:
        raise ControlError(
            f"the running daemon does not look for models in {call.home.models}",
            exit_code=EXIT_NOT_FOUND,
            code="model_not_found",
            hint="mlxctl config unset catalog.paths",
        )
    call.note("3/5 loading")
    waiting = Call(dataclasses.replace(call.options, wait_s=DEFAULT_WAIT_S), call.command)
    waiting.change("model.load", model=model)


def _ask(call: Call, server: Server, model: str) -> Answer:
    call.note(f"4/5 {QUESTION}")
    messages = [{"role": "user", "content": QUESTION}]
    answer = Answer(model=model)
    print_answer(call, server, {"model": model, "messages": messages, "temperature": 0, "max_tokens": 64}, answer)
    return answer


def _indent(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())
