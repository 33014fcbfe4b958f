"""`engine.output`: detokenizing, stop strings and tags, across token borders and with nothing lost."""

from __future__ import annotations

from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer

from mlxd.engine.base import PreparedPrompt, TextKind
from mlxd.engine.output import Markup, Output
from mlxd.engine.tool import CallPiece, ToolUse
from mlxd.engine.tool_reader import Piece
from tests.engine.bench import WriteModel
from tests.support.calls import whole_calls

CONTENT, REASONING, TOOL = TextKind.CONTENT, TextKind.REASONING, TextKind.TOOL
Said = tuple[TextKind, str]

CALL = '{"name": "f", "arguments": {"a": 1}}'
TAGGED = f"<tool_call>{CALL}</tool_call>"
TOOLS = ToolUse(({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},))


@pytest.fixture(scope="module")
def tokenizer(write_model: WriteModel) -> Any:
    """All bytes are tokens; thinking and tool tags are declared."""
    return load_tokenizer(write_model(all_bytes=True, thinking=True, tools=True))


def output(tokenizer: Any, stop: tuple[str, ...] = (), kind: TextKind = CONTENT, *, goes_on: bool = True) -> Output:
    """Return the output of a sequence that, unless told otherwise, continues a text."""
    return Markup(tokenizer).output(PreparedPrompt((1,), 1, kind, is_continuation=goes_on), stop)


def pushed(tokenizer: Any, out: Output, text: str) -> list[Piece]:
    """Push *text* token by token until it stops; return the pieces with text, without the flush at the end."""
    pieces: list[Piece] = []
    for token in tokenizer.encode(text, add_special_tokens=False):
        pieces += out.push(token)
        if out.stopped:
            break
    return pieces


def joined(pieces: list[Piece]) -> list[Said]:
    """Join neighbours of the same kind, and drop what is empty."""
    whole: list[Said] = []
    for kind, text, _ in pieces:
        if text and whole and whole[-1][0] is kind:
            whole[-1] = (kind, whole[-1][1] + text)
        elif text:
            whole.append((kind, text))
    return whole


def said(tokenizer: Any, text: str, stop: tuple[str, ...] = (), kind: TextKind = CONTENT) -> list[Said]:
    """Return all that comes out for *text*, the flush at the end included."""
    out = output(tokenizer, stop, kind)
    return joined(pushed(tokenizer, out, text) + out.finish())


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界 😀", " leading and trailing ", "a\n\nb", "é" * 50, ""])
def test_text_comes_out_whole(tokenizer: Any, text: str) -> None:
    """Every character comes out once, multi-byte ones too, and no replacement character in between."""
    out = output(tokenizer)
    pieces = pushed(tokenizer, out, text)
    assert all("\ufffd" not in piece for _, piece, _ in pieces)
    assert "".join(piece for _, piece, _ in pieces + out.finish()) == text


def test_every_token_gives_a_piece(tokenizer: Any) -> None:
    """A token that only feeds a buffer gives an empty piece: someone counts them."""
    out = output(tokenizer, ("###",))
    assert [bool(out.push(token)) for token in tokenizer.encode("😀## ", add_special_tokens=False)] == [True] * 7


def test_incomplete_character_comes_out_at_the_end(tokenizer: Any) -> None:
    """Bytes that never became a character are replaced, not swallowed."""
    out = output(tokenizer)
    for token in tokenizer.encode("a😀", add_special_tokens=False)[:-1]:
        out.push(token)
    assert joined(out.finish()) == [(CONTENT, "\ufffd")]


def test_leading_space_belongs_to_a_continuation(tokenizer: Any) -> None:
    """An answer to a chat has its leading space stripped as mlx-lm does; a continued text keeps it."""
    texts = []
    for goes_on in (True, False):
        out = output(tokenizer, goes_on=goes_on)
        texts.append("".join(text for _, text, _ in pushed(tokenizer, out, " Paris") + out.finish()))
    assert texts == [" Paris", "Paris"]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("one two three", ("one",), ""),
        ("aaab", ("aab",), "a"),
        ("ends here", ("here",), "ends "),
        ("Grüße 😀 und mehr", ("😀",), "Grüße "),
        ("a\n\nb", ("\n\n",), "a"),
        ("ababac", ("abac",), "ab"),
        ("no match", ("match!",), "no match"),
        ("no match at the en", ("end",), "no match at the en"),
        ("trailing ", (" ",), "trailing"),
    ],
)
def test_stop_strings_cut_the_text(tokenizer: Any, text: str, stop: tuple[str, ...], expected: str) -> None:
    """The first stop string ends the text, is not in it, and its beginnings elsewhere are."""
    out = output(tokenizer, stop)
    got = "".join(piece for _, piece, _ in pushed(tokenizer, out, text) + out.finish())
    assert (got, out.stopped) == (expected, got != text)


def test_beginning_of_a_stop_string_is_held_back(tokenizer: Any) -> None:
    """No part of a stop string goes out before it is known not to be one."""
    out = output(tokenizer, ("END",))
    assert joined(pushed(tokenizer, out, "The EN")) == [(CONTENT, "The ")]
    assert joined(pushed(tokenizer, out, "T")) == [(CONTENT, "ENT")]


def test_thinking_is_split_off(tokenizer: Any) -> None:
    """Tags switch the kind and are not text."""
    assert said(tokenizer, "<think>hm, 2</think>4") == [(REASONING, "hm, 2"), (CONTENT, "4")]


def test_prefilled_thinking_begins_inside(tokenizer: Any) -> None:
    """After a template that opened the thinking, the answer begins as reasoning."""
    assert said(tokenizer, "hm</think>4", kind=REASONING) == [(REASONING, "hm"), (CONTENT, "4")]


def test_tags_made_of_several_tokens_are_found(tokenizer: Any) -> None:
    """A tag that comes letter by letter is a tag all the same."""
    out = output(tokenizer)
    ids = [token for letter in "<think>hm</think>4" for token in tokenizer.encode(letter, add_special_tokens=False)]
    assert len(ids) == 18
    assert joined([piece for token in ids for piece in out.push(token)]) == [(REASONING, "hm"), (CONTENT, "4")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>never closed", [(REASONING, "never closed")]),
        ("1 < 2 and <thin", [(CONTENT, "1 < 2 and <thin")]),
    ],
)
def test_unclosed_tags_lose_nothing(tokenizer: Any, text: str, expected: list[Said]) -> None:
    """Text in a tag that is never closed, or that only looked like one, comes out."""
    assert said(tokenizer, text) == expected


def with_tools(tokenizer: Any, text: str, use: ToolUse | None = TOOLS) -> list[Piece]:
    """Return the pieces of *text* where the request has tools."""
    out = Markup(tokenizer).output(PreparedPrompt((1,), 1, tools=use), ())
    return [piece for piece in pushed(tokenizer, out, text) + out.finish() if piece.text or piece.calls]


@pytest.mark.parametrize(
    "text", [f"so {TAGGED} done", f"{TAGGED}{TAGGED}", "<tool_call>{1", f"{TAGGED[:-3]}", f"\n{TAGGED}"]
)
def test_without_tools_nothing_is_a_call(tokenizer: Any, text: str) -> None:
    """What looks like a call is text, tags and all, and comes as it is made."""
    assert said(tokenizer, text) == [(CONTENT, text)]


def test_call_is_read_and_its_text_kept(tokenizer: Any) -> None:
    """Text before and after stays content, and the call has its arguments."""
    pieces = with_tools(tokenizer, f"so {TAGGED} done")
    assert whole_calls(call for piece in pieces for call in piece.calls) == [CallPiece("f", '{"a": 1}', is_last=True)]
    assert joined(pieces) == [(CONTENT, "so "), (TOOL, TAGGED), (CONTENT, " done")]


def test_neighbouring_calls_are_two(tokenizer: Any) -> None:
    """White space around them is no content."""
    pieces = with_tools(tokenizer, f"\n{TAGGED}\n{TAGGED}\n")
    assert joined(pieces) == [(TOOL, TAGGED * 2)]
    assert len(whole_calls(call for piece in pieces for call in piece.calls)) == 2


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{1}</tool_call>",
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>["f"]</tool_call>',
        '<tool_call>{"name": "g", "arguments": {"a": 1}}',
        f"a {TAGGED[:20]}",
        "\n<tool_call>x</tool_call>\n",
    ],
)
def test_what_is_no_call_comes_out_as_text(tokenizer: Any, text: str) -> None:
    """A malformed or unclosed call is shown, with its tags, and not lost."""
    assert joined(with_tools(tokenizer, text)) == [(CONTENT, text)]


def test_good_call_after_a_bad_one_counts(tokenizer: Any) -> None:
    """One mistake does not spoil the rest."""
    pieces = with_tools(tokenizer, f"<tool_call>x</tool_call>{TAGGED}")
    assert joined(pieces) == [(CONTENT, "<tool_call>x</tool_call>"), (TOOL, TAGGED)]


def test_second_call_is_not_made_where_one_is_allowed(tokenizer: Any) -> None:
    """The answer stops after the first."""
    out = Markup(tokenizer).output(PreparedPrompt((1,), 1, tools=ToolUse(TOOLS.tools, parallel=False)), ())
    pieces = pushed(tokenizer, out, f"{TAGGED} {TAGGED}") + out.finish()
    assert out.stopped
    assert len(whole_calls(call for piece in pieces for call in piece.calls)) == 1


def test_call_in_a_stop_string_is_cut_like_any_text(tokenizer: Any) -> None:
    """A stop string that is met inside of a call leaves an unclosed call, which is text."""
    out = Markup(tokenizer).output(PreparedPrompt((1,), 1, tools=TOOLS), ("arg",))
    pieces = pushed(tokenizer, out, TAGGED) + out.finish()
    assert joined(pieces) == [(CONTENT, TAGGED[: TAGGED.index("arg")])]


def test_stop_string_ends_reasoning_too(tokenizer: Any) -> None:
    """Stop strings count in every part of the answer."""
    assert said(tokenizer, "<think>one two</think>", ("two",)) == [(REASONING, "one ")]


def test_model_without_tags_has_content_only(write_model: WriteModel) -> None:
    """What looks like a tag is text where the tokenizer declares none."""
    tokenizer = load_tokenizer(write_model())
    out = output(tokenizer)
    assert joined(pushed(tokenizer, out, "<think>x</think>") + out.finish()) == [(CONTENT, "<think>x</think>")]
