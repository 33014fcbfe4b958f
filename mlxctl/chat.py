"""`mlxctl chat`: one question, answered as it is made, or a conversation (`repl.py`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from mlxctl import output, process
from mlxctl.call import Call, Document
from mlxctl.chat_client import Answer, Server, list_models, print_answer
from mlxctl.client import Client
from mlxctl.repl import Conversation, Repl
from mlxctl.verb import Verb, make_app, usage_error
from mlxd.protocol.errors import EXIT_INVALID, EXIT_NOT_FOUND, EXIT_UNREACHABLE, ControlError

app = make_app("Talk to a model.")

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL] [PROMPT]",
        help="A model is chosen where none is named. Without a prompt: a chat on a terminal, else stdin is the prompt.",
    ),
]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System message.")]
Temperature = Annotated[float | None, typer.Option("--temperature", metavar="T", help="0 is greedy.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", metavar="N", help="Longest answer, in tokens.")]


@app.command("chat", cls=Verb)
def chat(
    ctx: typer.Context,
    words: Words = None,
    system: System = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
) -> None:
    """Ask a model, or talk with it on the terminal.

    The answer is printed as it comes. Ctrl-C ends the answer.
    """
    call = Call.of(ctx)
    server = _connect(call)
    model, prompt = choose(list(words or []), list_models(server, call.options.timeout_s))
    given = {"temperature": temperature, "max_tokens": max_tokens}
    parameters = {name: value for name, value in given.items() if value is not None}
    conversation = Conversation(model, system, parameters)
    if prompt is None and sys.stdin.isatty() and sys.stdout.isatty() and not call.options.json:
        Repl(call, lambda: _connect(call), conversation).run()
        return
    answer = Answer(model=model)
    print_answer(call, server, conversation.make_body(prompt if prompt is not None else _read_prompt(call)), answer)
    if call.options.json:
        output.print_json(_describe(answer))


def _connect(call: Call) -> Server:
    """Return the running daemon's HTTP server."""
    with call.connect() as daemon:
        return find_server(daemon)


def choose(words: Sequence[str], models: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """Return the model and the prompt that the words stand for; None where the prompt is to be read from stdin.

    One word that is no model is a prompt; the first of several is a model, also when only a cloud rule knows its name.

    Raises:
        ControlError: no model is named, and there is not one that goes without saying.
    """
    is_named = bool(words) and (words[0] in {model["id"] for model in models} or len(words) > 1)
    model = words[0] if is_named else _default_model(models)
    prompt = " ".join(words[1:] if is_named else words)
    return model, prompt or None


def find_server(daemon: Client) -> Server:
    """Return the daemon's HTTP server, and what lets us in.

    Raises:
        ControlError: it does not listen; the message says why. A broken settings file goes first: the defaults that
            hold instead may be what is in the way.
    """
    address = process.find_address(daemon)
    if address.url is None:
        broken = daemon.request("status").result.get("config", {}).get("problem")
        if broken is not None:
            raise ControlError.from_wire(broken)
        raise ControlError(
            f"the daemon's HTTP server does not listen\n{address.problem}",
            exit_code=EXIT_UNREACHABLE,
            code="http.not_listening",
            hint="mlxctl config set http.port N",
        )
    token = daemon.hello.get("http_token")
    return Server(address.url, token if isinstance(token, str) else None)


def _default_model(models: Sequence[Mapping[str, Any]]) -> str:
    usable = [model for model in models if model.get("state") != "cloud" and model.get("kind") != "embedding"]
    loaded = [model for model in usable if model.get("state") == "ready"]
    if len(loaded) == 1 or len(usable) == 1:
        return str((loaded if len(loaded) == 1 else usable)[0]["id"])
    if not usable:
        raise ControlError(
            "there is no model on this machine that can chat",
            exit_code=EXIT_NOT_FOUND,
            code="model_not_found",
            hint="mlxctl model pull starter",
        )
    names = [str(model["id"]) for model in (loaded or usable)]
    raise usage_error(
        f"which model? There are {len(names)}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}",
        f"mlxctl chat {names[0]} PROMPT",
    )


def _read_prompt(call: Call) -> str:
    if sys.stdin.isatty():
        call.note("Type the prompt; Ctrl-D on a line of its own sends it.")
    text = sys.stdin.read().strip()
    if any("\udc80" <= character <= "\udcff" for character in text):  # how Python keeps bytes that are no UTF-8
        raise ControlError("the prompt on stdin is not UTF-8", exit_code=EXIT_INVALID, code="chat.not_utf8")
    if not text:
        raise usage_error("there is no prompt", 'mlxctl chat "What is the capital of France?"')
    return text


def _describe(answer: Answer) -> Document:
    return {
        "model": answer.model,
        "content": answer.content,
        "reasoning_content": answer.reasoning or None,
        "finish_reason": answer.finish_reason,
        "usage": answer.usage,
        "ttft_ms": None if answer.ttft_s is None else round(answer.ttft_s * 1000),
        "duration_ms": round(answer.duration_s * 1000),
    }
