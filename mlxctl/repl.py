"""`mlxctl chat` without a prompt: a conversation on the terminal.

Owns the commands that begin with a slash, and what Ctrl-C and errors do to the conversation: they end an answer, never
the chat.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Mapping

from mlxctl import output
from mlxctl.answer import print_answer
from mlxctl.call import Call
from mlxctl.completion import Answer, Server, list_models
from mlxctl.conversation import DEFAULT, PARAMETERS, Conversation
from mlxctl.history import History
from mlxctl.prompt import Prompt
from mlxd.protocol.errors import EXIT_USAGE, ContextLengthExceeded, ControlError

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


class Repl:
    """One chat on the terminal."""

    def __init__(self, call: Call, find_server: Callable[[], Server], conversation: Conversation) -> None:
        """Take how the server is found, which is asked anew each time: a daemon may be started again meanwhile."""
        self._call = call
        self._find_server = find_server
        self._conversation = conversation
        self._history = History(call.home.root / "chat_history")
        self._prompt = Prompt(self._history, self._complete, output.print_note)
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
        """Read a text and act upon it; False when it ends the chat."""
        text = self._prompt.read()
        if text is None:
            output.print_note("")
            return False
        if text.strip() in ("/exit", "/quit", "/bye"):
            return False
        self._take(text)
        return True

    def _take(self, text: str) -> None:
        """Act upon what was typed; an error is told, and the chat goes on."""
        try:
            if text.startswith("/"):
                self._run_command(text)
            elif text.strip():
                self._ask(text.strip())
        except KeyboardInterrupt:
            output.print_note("")
        except ControlError as error:
            output.print_note(output.format_error(error))

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
            conversation.add(prompt, answer.content)

    def _advise(self, error: ControlError, answer: Answer) -> str | None:
        if error.code == ContextLengthExceeded.code:
            if not self._conversation.exchanges:
                return "a shorter prompt, or /model NAME with a longer context"
            return "/clear forgets what was said, then /retry asks this again; or /model NAME with a longer context"
        if error.param in self._conversation.parameters:
            return f"/set {error.param} {DEFAULT}, or another value; then /retry"
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
            raise ControlError(
                f"there is no command {name}",
                exit_code=EXIT_USAGE,
                code="usage",
                hint=f"{near[0] if near else '/help'}; a text that begins with a slash takes a space before it",
            )
        command(argument.strip())

    def _choose_model(self, name: str) -> None:
        models = list_models(self._find_server(), self._call.options.timeout_s)
        self._models = [str(model["id"]) for model in models]
        if not name:
            rows = [
                (
                    f"* {model['id']}" if model["id"] == self._conversation.model else f"  {model['id']}",
                    model.get("state"),
                )
                for model in models
            ]
            output.print_note(output.format_table(("  MODEL", "STATE"), rows))
            return
        if name not in self._models:  # a cloud rule may know it all the same
            near = difflib.get_close_matches(name, self._models, n=3, cutoff=0.5)
            nearest = f"; the nearest names are {', '.join(near)}" if near else ""
            output.print_note(f"note: no model {name} is listed{nearest}; it is asked for by this name all the same")
        self._conversation.model = name
        self._call.note(f"[{name} answers from here on]")

    def _set_system(self, text: str) -> None:
        if not text:
            output.print_note(self._conversation.system or "(no system message)")
            return
        self._conversation.system = None if text == "off" else text
        self._call.note("[no system message]" if text == "off" else "[system message set]")

    def _set_parameter(self, argument: str) -> None:
        name, _, value = argument.replace("=", " ").partition(" ")
        if name and not value.strip():
            raise ControlError(
                f"a value is missing for {name}", exit_code=EXIT_USAGE, code="usage", hint=f"/set {name} VALUE"
            )
        if name:
            self._conversation.set_parameter(name, value.strip())
            self._call.note(f"[{name} is {self._conversation.parameters.get(name, 'the default of the server')}]")
            return
        shown = self._conversation.parameters
        output.print_note(output.format_pairs([(key, shown.get(key, DEFAULT)) for key in PARAMETERS]))

    def _retry(self, argument: str) -> None:
        _refuse_argument("/retry", argument)
        prompt = self._conversation.take_back()
        if prompt is None:
            raise ControlError("nothing was asked yet", exit_code=EXIT_USAGE, code="usage", hint="type a prompt")
        self._call.note(f"[again: {prompt if len(prompt) <= 60 else prompt[:57] + '...'}]")
        self._ask(prompt)

    def _clear(self, argument: str) -> None:
        _refuse_argument("/clear", argument)
        self._conversation.clear()
        self._call.note("[what was said is forgotten]")

    def _keep_history(self, argument: str) -> None:
        if argument in ("on", "off"):
            self._history.is_kept = argument == "on"
        elif argument == "clear":
            try:
                self._prompt.forget()
            except OSError as error:
                raise ControlError(f"{self._history.path}: {error.strerror}", code="os_error") from None
            self._call.note("[what you typed is forgotten]")
            return
        elif argument:
            raise ControlError(
                f"/history takes on, off or clear, not {argument!r}",
                exit_code=EXIT_USAGE,
                code="usage",
                hint="/history off",
            )
        is_kept = "is kept" if self._history.is_kept else "is not kept"
        output.print_note(f"what you type {is_kept} in {self._history.path}")

    def _complete(self, line: str) -> list[str]:
        """Return the lines that *line* may become: commands, models, parameters."""
        candidates = [*self._commands, "/exit"]
        if line.startswith("/model "):
            candidates = [f"/model {model}" for model in self._find_models()]
        elif line.startswith("/set "):
            candidates = [f"/set {name} " for name in PARAMETERS]
        return [candidate for candidate in candidates if candidate.startswith(line)] if line.startswith("/") else []

    def _find_models(self) -> list[str]:
        if not self._models:
            try:
                self._models = [str(model["id"]) for model in list_models(self._find_server(), timeout_s=1.0)]
            except ControlError:
                return []
        return self._models


def _refuse_argument(command: str, argument: str) -> None:
    if argument:
        raise ControlError(f"{command} takes no argument", exit_code=EXIT_USAGE, code="usage", hint=command)
