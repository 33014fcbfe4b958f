"""`mlxctl chat` without a prompt: a conversation on the terminal.

Owns what was said, the commands that begin with a slash, and what Ctrl-C and errors do: they end an answer, never the
chat.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxctl import output
from mlxctl.call import Call
from mlxctl.chat_client import Answer, Server, list_models, print_answer
from mlxctl.line_editor import History, LineEditor
from mlxctl.verb import usage_error
from mlxd.protocol.errors import EXIT_USAGE, ContextLengthExceeded, ControlError

# Their bounds are the server's, which names them.
_PARAMETERS: Mapping[str, type[int | float]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "max_tokens": int,
    "seed": int,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
}
_DEFAULT = "default"
_HELP = '''  /model [NAME]         ask another model from here on; without a name: which there are
  /system [TEXT|off]    set, show or take away the system message
  /set [NAME VALUE]     temperature, max_tokens ...; VALUE default leaves it to the server
  /retry                ask the last prompt again
  /clear                forget what was said; model, system message and parameters stay
  /history on|off|clear keep what you type for the next chat, or not, or forget it
  /exit                 end, as does Ctrl-D
  Ctrl-C stops an answer; what came of it stays in the conversation.
  Several lines: """ before and after them, or a backslash at the end of a line, or paste them.
  A text that begins with a slash: put a space before it.'''


@dataclass(slots=True)
class Conversation:
    """What was said to a model, and how it is asked.

    Attributes:
        model: the model's id.
        system: the system message; None for none.
        parameters: what is not the server's default.
        exchanges: prompts and what was answered, as far as it came.
        unanswered: the last prompt, when nothing was answered.
    """

    model: str
    system: str | None = None
    parameters: dict[str, float] = field(default_factory=dict)
    exchanges: list[tuple[str, str]] = field(default_factory=list)
    unanswered: str | None = None

    def make_body(self, prompt: str) -> dict[str, Any]:
        """Return the request that asks *prompt* after all that was said."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for asked, answered in self.exchanges:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": prompt})
        return {"model": self.model, "messages": messages, **self.parameters}


class Repl:
    """One chat on the terminal."""

    def __init__(self, call: Call, find_server: Callable[[], Server], conversation: Conversation) -> None:
        """Take how the server is found, which is asked anew each time: a daemon may be started again meanwhile."""
        self._call = call
        self._find_server = find_server
        self._conversation = conversation
        self._history = History(call.home.root / "chat_history")
        self._editor = LineEditor(self._history, self._complete, output.print_note)
        self._models: list[str] = []
        self._commands: Mapping[str, Callable[[str], None]] = {
            "/help": lambda _: output.print_note(_HELP),
            "/model": self._choose_model,
            "/system": self._set_system,
            "/set": self._set_parameter,
            "/retry": self._retry,
            "/clear": self._clear,
            "/history": self._keep_history,
        }

    def run(self) -> None:
        """Talk until the end of the input or /exit."""
        self._call.note(
            f"{self._conversation.model}: /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the chat"
        )
        goes_on = True
        while goes_on:
            # Around all of it: a second Ctrl-C may come at any place.
            try:
                goes_on = self._take_turn()
            except KeyboardInterrupt:
                with contextlib.suppress(KeyboardInterrupt):
                    output.print_note("\n(Ctrl-D or /exit ends the chat)")

    def _take_turn(self) -> bool:
        """Read a text and act upon it; False when it ends the chat. An error is told, and the chat goes on."""
        text = self._editor.read()
        if text is None:
            output.print_note("")
            return False
        if text.strip() in ("/exit", "/quit", "/bye"):
            return False
        try:
            if text.startswith("/"):
                self._run_command(text)
            elif text.strip():
                self._ask(text.strip())
        except KeyboardInterrupt:
            output.print_note("")
        except ControlError as error:
            output.print_note(output.format_error(error))
        return True

    def _ask(self, prompt: str) -> None:
        if any("\udc80" <= character <= "\udcff" for character in prompt):  # how Python keeps bytes that are no UTF-8
            raise ControlError("what was typed is not UTF-8", exit_code=EXIT_USAGE, code="chat.not_utf8")
        conversation = self._conversation
        answer = Answer(model=conversation.model)
        try:
            print_answer(self._call, self._find_server(), conversation.make_body(prompt), answer)
        except KeyboardInterrupt:
            kept = "what came of it stays in the conversation" if answer.content else "nothing came of it"
            self._call.note(f"[stopped: {kept}; /retry asks again]")
        except ControlError as error:
            error.hint = self._advise(error, answer)
            raise
        else:
            self._note_end(answer)
        finally:
            conversation.unanswered = None if answer.content else prompt
            if answer.content:
                conversation.exchanges.append((prompt, answer.content))

    def _advise(self, error: ControlError, answer: Answer) -> str | None:
        if error.code == ContextLengthExceeded.code:
            if not self._conversation.exchanges:
                return "a shorter prompt, or /model NAME with a longer context"
            return "/clear forgets what was said, then /retry asks this again; or /model NAME with a longer context"
        if error.param in self._conversation.parameters:
            return f"/set {error.param} {_DEFAULT}, or another value; then /retry"
        again = "/retry asks again" if not answer.content else "what came stays in the conversation; /retry asks again"
        return again if error.hint is None else f"{error.hint}\n{again}"

    def _note_end(self, answer: Answer) -> None:
        if answer.finish_reason == "length":
            limit = self._conversation.parameters.get("max_tokens")
            if limit is not None and answer.usage.get("completion_tokens", limit) >= limit:
                self._call.note(f"[cut off at max_tokens {limit}: /set max_tokens N, or default]")
            else:
                self._call.note("[cut off: the context is full; /clear forgets what was said]")
        if not answer.content:
            self._call.note("[the answer is empty; /retry asks again]")

    def _run_command(self, text: str) -> None:
        name, _, argument = text.strip().partition(" ")
        command = self._commands.get(name)
        if command is None:
            near = difflib.get_close_matches(name, [*self._commands, "/exit"], n=1, cutoff=0.5)
            raise usage_error(
                f"there is no command {name}",
                f"{near[0] if near else '/help'}; a text that begins with a slash takes a space before it",
            )
        if argument.strip() and name in ("/retry", "/clear"):
            raise usage_error(f"{name} takes no argument", name)
        command(argument.strip())

    def _choose_model(self, name: str) -> None:
        conversation = self._conversation
        models = list_models(self._find_server(), self._call.options.timeout_s)
        self._models = [str(model["id"]) for model in models]
        if not name:
            signs = {conversation.model: "*"}
            marked = ("  MODEL", lambda model: f"{signs.get(model['id'], ' ')} {model['id']}")
            output.print_note(output.format_table([marked, ("STATE", "state")], models))
            return
        if name not in self._models:  # a cloud rule may know it all the same
            near = difflib.get_close_matches(name, self._models, n=3, cutoff=0.5)
            nearest = f"; the nearest names are {', '.join(near)}" if near else ""
            output.print_note(f"note: no model {name} is listed{nearest}; it is asked for by this name all the same")
        conversation.model = name
        self._call.note(f"[{name} answers from here on]")

    def _set_system(self, text: str) -> None:
        if not text:
            output.print_note(self._conversation.system or "(no system message)")
            return
        self._conversation.system = None if text == "off" else text
        self._call.note("[no system message]" if text == "off" else "[system message set]")

    def _set_parameter(self, argument: str) -> None:
        name, _, text = (word.strip() for word in argument.replace("=", " ").partition(" "))
        given = self._conversation.parameters
        if not name:
            output.print_note(output.format_pairs([(key, given.get(key, _DEFAULT)) for key in _PARAMETERS]))
            return
        if not text:
            raise usage_error(f"a value is missing for {name}", f"/set {name} VALUE")
        value = _parse_parameter(name, text)
        if value is None:
            given.pop(name, None)
        else:
            given[name] = value
        self._call.note(f"[{name} is {given.get(name, 'the default of the server')}]")

    def _retry(self, _: str) -> None:
        prompt = self._conversation.unanswered
        if prompt is None and self._conversation.exchanges:
            prompt, _ = self._conversation.exchanges.pop()
        if prompt is None:
            raise usage_error("nothing was asked yet", "type a prompt")
        self._call.note(f"[again: {prompt if len(prompt) <= 60 else prompt[:57] + '...'}]")
        self._ask(prompt)

    def _clear(self, _: str) -> None:
        exchanges = self._conversation.exchanges
        if exchanges and self._conversation.unanswered is None:
            self._conversation.unanswered = exchanges[-1][0]
        exchanges.clear()
        self._call.note("[what was said is forgotten]")

    def _keep_history(self, argument: str) -> None:
        if argument in ("on", "off"):
            self._history.is_kept = argument == "on"
        elif argument == "clear":
            try:
                self._editor.forget()
            except OSError as error:
                raise ControlError(f"{self._history.path}: {error.strerror}", code="os_error") from None
            self._call.note("[what you typed is forgotten]")
            return
        elif argument:
            raise usage_error(f"/history takes on, off or clear, not {argument!r}", "/history off")
        is_kept = "is kept" if self._history.is_kept else "is not kept"
        output.print_note(f"what you type {is_kept} in {self._history.path}")

    def _complete(self, line: str) -> list[str]:
        """Return the lines that *line* may become: commands, models, parameters."""
        candidates = [*self._commands, "/exit"]
        if line.startswith("/model "):
            if not self._models:
                with contextlib.suppress(ControlError):
                    self._models = [str(model["id"]) for model in list_models(self._find_server(), timeout_s=1.0)]
            candidates = [f"/model {model}" for model in self._models]
        elif line.startswith("/set "):
            candidates = [f"/set {name} " for name in _PARAMETERS]
        return [candidate for candidate in candidates if candidate.startswith(line)] if line.startswith("/") else []


def _parse_parameter(name: str, text: str) -> float | None:
    """Return the value of a sampling parameter that was typed; None for `default`, which leaves it to the server.

    Raises:
        ControlError: there is no such parameter, or the text is no number for it.
    """
    kind = _PARAMETERS.get(name)
    if kind is None:
        raise usage_error(f"there is no parameter {name!r}; there are {', '.join(_PARAMETERS)}", "/set temperature 0.2")
    if text == _DEFAULT:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        wanted = "a whole number" if kind is int else "a number"
        raise usage_error(f"{name} is {wanted} or {_DEFAULT}, not {text!r}", f"/set {name} {_DEFAULT}")
    return value
