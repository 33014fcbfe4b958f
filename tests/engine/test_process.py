"""`engine.process` and its child: the text is transformers' own, and a template that misbehaves costs only itself."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
from mlx_lm.utils import load_tokenizer

from mlxd.engine import process_child
from mlxd.engine.chat_template import has_own_renderer
from mlxd.engine.process import Bounds, Processes, resident_bytes
from mlxd.protocol.errors import InvalidRequest, RequestCancelled, TemplateFailed
from tests.engine.bench import WriteModel
from tests.support.chat_template import REAL

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}" + "{% endfor %}" * 3
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Look at\nthe sky <now> & 'then'",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Ünïcode"},
                    "days": {"type": "array", "items": {"oneOf": [{"type": "integer"}, {"enum": ["a", "b"]}]}},
                },
                "required": ["city"],
            },
        },
    }
]
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Köln", "days": [1.5, 2]}},
}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hi\n there "}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi 🐈"}],
    "dialogue": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2", "reasoning_content": "easy"},
        {"role": "user", "content": "And <think>?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfour", "name": None},
    ],
    "tools": [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": '{"rain": true}', "tool_call_id": "c1"},
    ],
    "refused": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
}


@pytest.fixture(scope="module")
def templates() -> Iterator[Processes]:
    """Bounds that let a rendering on a busy machine end."""
    templates = Processes()
    yield templates
    templates.close()


@pytest.fixture
def bounded() -> Iterator[Callable[..., Processes]]:
    """Make templates with bounds of one's own."""
    with contextlib.ExitStack() as stack:

        def make(**bounds: float) -> Processes:
            made = Processes(Bounds(**bounds))  # type: ignore[arg-type]
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(scope="module")
def tokenizer(write_model: WriteModel) -> Any:
    """The tiny model's, which thinks."""
    return load_tokenizer(write_model(thinking=True))


def job(template: str, **more: Any) -> dict[str, Any]:
    """Return what is sent for one user message."""
    usual: dict[str, Any] = {
        "messages": CHATS["one"],
        "tools": None,
        "generation": True,
        "continues": False,
        "variables": {},
    }
    return {"template": template, **usual, **more}


def never() -> bool:
    """Nobody gives up."""
    return False


def text_of(processes: Processes, model_id: str, sent: dict[str, Any]) -> str:
    """Render what nobody gives up and nothing is marked in."""
    text, _ = processes.render(model_id, sent, never)
    return text


def outcome(render: Callable[[], str]) -> str:
    """Return the text, or how the messages were refused."""
    try:
        return render()
    except InvalidRequest as error:
        return error.message.partition("refuses these messages: ")[2]
    except Exception as error:  # noqa: BLE001 transformers raises anything
        return str(error)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", REAL)
def test_text_is_that_of_transformers(templates: Processes, tokenizer: Any, name: str, chat: str) -> None:
    """With and without tools, thinking and an answer to continue: the same text, or the same refusal."""
    tokenizer.chat_template = REAL[name]
    messages = CHATS[chat]
    given: list[dict[str, Any]] = [
        {"enable_thinking": True},
        {"enable_thinking": False},
        {"enable_thinking": True, "reasoning_effort": "low", "date_string": "1 May"},
    ]
    for tools, continues, variables in itertools.product((None, TOOLS), (False, True), given):
        options = {"tools": tools, "add_generation_prompt": not continues, "continue_final_message": continues}
        expected = outcome(partial(tokenizer.apply_chat_template, messages, tokenize=False, **options, **variables))
        sent = job(
            tokenizer.get_chat_template(None, tools),
            messages=messages,
            tools=tools,
            generation=not continues,
            continues=continues,
            variables={**tokenizer.special_tokens_map, **variables},
        )
        assert outcome(partial(text_of, templates, "m", sent)) == expected


def test_program_needs_little_of_transformers() -> None:
    """It loads the one module that renders and not the package, which would take a second at every start."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(process_child.__file__).parent)!r}); import process_child;"
        "process_child.load_rendering();"
        "print(*sorted(n for n in sys.modules if n.startswith(('transformers', 'numpy.', 'tokenizers', 'mlx'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "transformers",
        "transformers.utils",
        "transformers.utils.chat_template_utils",
        "transformers.utils.import_utils",
        "transformers.utils.logging",
    ]


def test_a_version_that_needs_more_of_its_package_gets_all_of_it(tmp_path: Path) -> None:
    """Nothing that stands in for a part of it stays behind."""
    utils = tmp_path / "transformers" / "utils"
    utils.mkdir(parents=True)
    (tmp_path / "numpy.py").write_text("ndarray = list")
    (tmp_path / "transformers" / "__init__.py").write_text("more = 1")
    (utils / "__init__.py").write_text("")
    (utils / "chat_template_utils.py").write_text("import numpy\nfrom transformers import more\nshape = numpy.ndarray")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(Path(process_child.__file__).parent)!r}];"
        "import process_child; print(process_child.load_rendering().shape.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "list\n"


def test_template_without_end_is_ended(bounded: Callable[..., Processes]) -> None:
    """The error names the model, the limit, and where to look; the next rendering works."""
    templates = bounded(deadline_s=0.3)
    with pytest.raises(TemplateFailed, match=r"'bad' did not end within 0\.3 s") as error:
        text_of(templates, "bad", job(ENDLESS))
    assert "chat_template.jinja" in str(error.value.hint)
    assert text_of(templates, "good", job("fine")) == "fine"


@pytest.mark.parametrize(
    "template",
    ["{{ ('a' * 10**10)[0] }}", "{{ (range(99999) | list) * 99999 }}", "{% set a = 10 ** (10 ** 9) %}"],
    ids=["text", "list", "number"],
)
def test_template_that_wants_too_much_is_ended(bounded: Callable[..., Processes], template: str) -> None:
    """Neither a call into C nor an allocation gets past its bounds, whichever it reaches first."""
    templates = bounded(deadline_s=1.0, memory_bytes=2**28)
    with pytest.raises(TemplateFailed, match=r"takes more than 256MiB|did not end within 1 s"):
        text_of(templates, "bad", job(template))
    assert text_of(templates, "good", job("fine")) == "fine"


def test_memory_is_watched_where_the_system_does_not_refuse_it(
    bounded: Callable[..., Processes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has grown past the bound is killed while it renders."""
    monkeypatch.setattr("mlxd.engine.process.resident_bytes", lambda pid: 2**31)
    with pytest.raises(TemplateFailed, match="takes more than 1GiB of memory"):
        text_of(bounded(), "bad", job(ENDLESS))


def test_resident_memory_is_that_of_the_process() -> None:
    """It is between a few MB and the machine's; a process that is gone has none."""
    mine = resident_bytes(os.getpid())
    assert 2**23 < mine < 2**40
    held = bytearray(os.urandom(1)) * 2**27
    assert resident_bytes(os.getpid()) - mine > len(held) // 2
    assert resident_bytes(2**22 + 1) == 0


def test_text_is_bounded(bounded: Callable[..., Processes]) -> None:
    """What a template makes of a short chat may be long, and is not taken then."""
    templates = bounded(text_bytes=1000)
    assert len(text_of(templates, "m", job("{{ 'a' * 1000 }}"))) == 1000
    with pytest.raises(TemplateFailed, match="makes more than 1KB of text"):
        text_of(templates, "m", job("{{ 'a' * 1001 }}"))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ range(10**9) }}", "Range too big"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ '\ud83d' }}", r"lone surrogate U\+D83D"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_template_that_refuses_is_quoted(templates: Processes, template: str, words: str) -> None:
    """What it says is passed on, bounded, as the request's fault."""
    with pytest.raises(InvalidRequest, match=f"template of 'm' refuses these messages: .*{words}") as error:
        text_of(templates, "m", job(template))
    assert error.value.param == "messages"


def test_words_of_a_template_are_bounded(templates: Processes) -> None:
    """An error of megabytes is cut where it is made."""
    with pytest.raises(InvalidRequest, match="refuses these messages: aaa") as error:
        text_of(templates, "m", job("{{ raise_exception('a' * 10**7) }}"))
    assert len(error.value.message) <= 4000


@pytest.mark.parametrize("value", [2**64, object()], ids=["number", "object"])
def test_what_cannot_be_sent_is_refused(templates: Processes, value: Any) -> None:
    """Numbers of more than 64 bits and foreign objects never reach a template."""
    sent = job("{{ given }}", variables={"given": value})
    with pytest.raises(InvalidRequest, match="cannot be rendered"):
        text_of(templates, "m", sent)


def test_rendering_ends_when_nobody_waits(bounded: Callable[..., Processes]) -> None:
    """A client that leaves ends its rendering, long before the deadline."""
    asked = iter([False, False])
    with pytest.raises(RequestCancelled):
        bounded(deadline_s=600.0).render("m", job(ENDLESS), lambda: next(asked, True))


def test_bad_template_keeps_no_other_waiting(bounded: Callable[..., Processes]) -> None:
    """While two renderings never end, others are done by other processes."""
    templates = bounded(deadline_s=600.0)
    is_over, started = threading.Event(), threading.Barrier(3)

    def render_for_ever() -> None:
        started.wait()
        with contextlib.suppress(RequestCancelled):
            templates.render("bad", job(ENDLESS), is_over.is_set)

    threads = [threading.Thread(target=render_for_ever) for _ in range(2)]
    for thread in threads:
        thread.start()
    started.wait()
    assert [text_of(templates, "good", job("fine")) for _ in range(3)] == ["fine"] * 3
    is_over.set()
    for thread in threads:
        thread.join()


def test_long_messages_go_through(templates: Processes) -> None:
    """What is longer than a pipe holds is sent and answered in pieces."""
    messages = [{"role": "user", "content": "ü🐈x" * 300_000}]
    text = text_of(templates, "m", job("{{ messages[0].content }}", messages=messages))
    assert text == messages[0]["content"]


MARKED = {0: {"role": "user", "content": "MARK"}}
# Does what is in the braces where messages are marked.
ON_MARKS = "{%% if messages[0].content == 'MARK' %%}%s{%% endif %%}{{ messages[0].content }}"


def test_marked_messages_are_rendered_as_well(templates: Processes) -> None:
    """They replace those at their indexes in a second text; the process is used again, with or without marks."""
    messages = [{"role": "user", "content": text} for text in "abc"]
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    sent = job(template, messages=messages, marked={1: {"role": "user", "content": "-b-"}})
    templates.render("m", sent, never)
    process = templates._idle[-1]
    assert templates.render("m", sent, never) == ("abc", "a-b-c")
    assert templates.render("m", job(template, messages=messages), never) == ("abc", "")
    assert templates._idle[-1] is process


def test_long_marked_messages_go_through(templates: Processes) -> None:
    """Two texts that are longer than a pipe holds come in pieces, and none gets into the other."""
    long = [{"role": "user", "content": letter * 300_000} for letter in "aü"]
    text, marked = templates.render("m", job("{{ messages[0].content }}", messages=long, marked={0: long[1]}), never)
    assert (text, marked) == (long[0]["content"], long[1]["content"])


@pytest.mark.parametrize(
    "action",
    [ENDLESS, "{{ raise_exception('no') }}", "{{ 'a' * 1000 }}", "{% set a = 'a' * 10**10 %}", "{{ '\ud83d' }}"],
    ids=["endless", "refused", "long", "memory", "surrogate"],
)
def test_marks_fail_no_request(bounded: Callable[..., Processes], action: str) -> None:
    """Whatever a template does because of marks, the text of the messages themselves is returned, and it renders on."""
    templates = bounded(second_s=0.1, text_bytes=999)
    sent = job(ON_MARKS % action, marked=MARKED)
    assert templates.render("m", sent, never) == (CHATS["one"][0]["content"], "")
    assert text_of(templates, "m", job("fine")) == "fine"


def test_process_that_crashes_on_marks_fails_no_request(bounded: Callable[..., Processes]) -> None:
    """The text was there before."""
    templates = bounded()
    process = templates._take()
    asked: list[bool] = []

    def crash() -> bool:
        process._process.kill()
        asked.append(True)
        return False

    process.exchange(msgpack.packb(job(ON_MARKS % ENDLESS, marked=MARKED)), never)
    assert process.second(crash) == b""
    assert asked
    assert not process.is_fit
    process.kill()


def test_rendering_of_marks_ends_when_nobody_waits(bounded: Callable[..., Processes]) -> None:
    """A client that leaves does not wait for the second text."""
    templates = bounded(second_s=600.0)
    process = templates._take()
    process.exchange(msgpack.packb(job(ON_MARKS % ENDLESS, marked=MARKED)), never)
    with pytest.raises(RequestCancelled):
        process.second(lambda: True)
    assert not process.is_fit
    process.kill()


def test_process_is_used_again(templates: Processes) -> None:
    """Prompts one after another are rendered by one process."""
    text_of(templates, "m", job("x"))
    first = templates._idle[-1]
    text_of(templates, "m", job("y"))
    assert templates._idle[-1] is first


def test_process_that_was_killed_is_an_error_of_its_request_only(bounded: Callable[..., Processes]) -> None:
    """The system may end it at any time; the next prompt gets another."""
    templates = bounded()
    text_of(templates, "m", job("x"))
    templates._idle[0]._process.kill()
    with pytest.raises(TemplateFailed, match="crashed the process that it ran in"):
        text_of(templates, "m", job("x"))
    assert text_of(templates, "m", job("x")) == "x"


def test_process_that_stands_still_is_ended(bounded: Callable[..., Processes]) -> None:
    """The deadline does not depend on the process."""
    templates = bounded(deadline_s=0.3)
    text_of(templates, "m", job("x"))
    templates._idle[0]._process.send_signal(signal.SIGSTOP)
    with pytest.raises(TemplateFailed, match=r"did not end within 0\.3 s"):
        text_of(templates, "m", job("x"))


def test_process_that_ends_itself_at_its_alarm_was_too_slow(bounded: Callable[..., Processes]) -> None:
    """Whoever is first, the words are the same."""
    templates = bounded()
    text_of(templates, "m", job("x"))
    templates._idle[0]._process.send_signal(signal.SIGALRM)
    with pytest.raises(TemplateFailed, match="did not end within 10 s"):
        text_of(templates, "m", job("x"))


def test_process_does_not_end_with_ctrl_c(bounded: Callable[..., Processes]) -> None:
    """The terminal signals all processes in it; the daemon's prompts are rendered until it ends."""
    templates = bounded()
    text_of(templates, "m", job("x"))
    templates._idle[0]._process.send_signal(signal.SIGINT)
    assert text_of(templates, "m", job("x")) == "x"


def test_few_processes_are_kept(bounded: Callable[..., Processes]) -> None:
    """As many as run at once are started, and two of them stay."""
    templates = bounded()
    taken = [templates._take() for _ in range(3)]
    for process in taken:
        process.exchange(msgpack.packb(job("x")), never)
        templates._give_back(process)
    assert templates._idle == taken[:2]
    assert taken[2]._process.returncode == -signal.SIGKILL


def test_answer_that_is_announced_too_long_is_not_read(bounded: Callable[..., Processes]) -> None:
    """The daemon does not rely on the process to keep to the bound."""
    templates = bounded(text_bytes=1000)
    process = templates._take()
    process._bounds = Bounds(text_bytes=10)
    assert process.exchange(msgpack.packb(job("{{ 'a' * 10 }}")), never) == (process_child.TEXT, b"a" * 10)
    assert process.exchange(msgpack.packb(job("{{ 'a' * 11 }}")), never) == (process_child.TOO_LONG, b"")
    process.kill()


def test_processes_end_with_the_templates(bounded: Callable[..., Processes]) -> None:
    """An idle one at once, one that renders when it is given back."""
    templates = bounded()
    text_of(templates, "m", job("x"))
    process = templates._idle[0]._process
    templates.close()
    assert process.returncode == -signal.SIGKILL
    assert text_of(templates, "m", job("x")) == "x"
    assert templates._idle == []


def test_child_ends_with_its_parent() -> None:
    """An idle one at the end of its input; one in the middle of a call that nothing interrupts by its alarm."""
    code = (
        "import os, msgpack, struct; from mlxd.engine.process import Bounds, Processes\n"
        "idle, busy = (Processes(Bounds(deadline_s=-1.9)) for _ in range(2))\n"
        "processes = [t._take() for t in (idle, busy)]\n"
        "for p in processes: assert p._converse(b'', 60, lambda: False)[0] == b'k'\n"
        f"data = msgpack.packb({job('{% set a = 10 ** (10 ** 9) %}')!r})\n"
        "os.write(processes[1]._in, struct.pack('>I', len(data)) + data)\n"
        "print(*(p._process.pid for p in processes), flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    for pid in pids:
        while resident_bytes(pid):
            time.sleep(0.005)  # no event tells of the end of another's child


def test_process_inherits_nothing(templates: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket, no lock, no key in the environment."""
    if sys.platform != "linux":
        pytest.skip("/proc shows what a process has open")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        process = Processes()._take()
        process._converse(b"", 60, never)
        folder = Path(f"/proc/{process._process.pid}")
        assert sorted(int(entry.name) for entry in (folder / "fd").iterdir()) == [0, 1, 2]
        assert b"secret" not in (folder / "environ").read_bytes()
        process.kill()
    finally:
        os.close(read)
        os.close(write)


def test_python_of_mlx_lm_renders_where_a_model_asks_for_it(tokenizer: Any) -> None:
    """A template that came with the model is rendered apart; Python that did not is not."""
    assert not has_own_renderer(tokenizer)
    tokenizer._chat_template = lambda messages, **options: "x"
    try:
        assert has_own_renderer(tokenizer)
    finally:
        tokenizer._chat_template = None
