"""`engine.arrangement`: every chat is taken by every template, nothing of it is lost, and its beginning stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from mlxd.engine.arrangement import arranged
from mlxd.engine.template_traits import TemplateTraits
from tests.support.chat_tokenizer import byte_level
from tests.support.prompt import prepare, renderer_of, shared_tokens, with_template
from tests.support.templates import TEMPLATES

Message = dict[str, Any]
STRICT = TemplateTraits(takes_late_system=False)
BARE = TemplateTraits(takes_system=False, takes_late_system=False, takes_users_in_a_row=False)
MISTRAL = TemplateTraits(takes_late_system=False, takes_users_in_a_row=False, takes_user_after_tool=False)


def said(*messages: Mapping[str, Any]) -> list[str]:
    """Return messages in short."""
    return [f"{message['role']}: {message['content']}" for message in messages]


def system(content: str) -> Message:
    """Return a system message."""
    return {"role": "system", "content": content}


def user(content: str) -> Message:
    """Return a question."""
    return {"role": "user", "content": content}


def answer(content: str) -> Message:
    """Return an answer."""
    return {"role": "assistant", "content": content}


CALL = {"id": "callcall1", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "callcall1", "content": "Blue."}


def test_instructions_without_a_question_are_the_question() -> None:
    """Where the template refuses a chat without one; with one they stay what they are."""
    traits = replace(STRICT, takes_system_alone=False)
    assert short(arranged([system("a"), system("b")], traits)) == "u a+b"
    assert short(arranged([system("a"), answer("b"), system("c")], traits)) == "u a|a b|u c"
    assert short(arranged([system("a"), user("b")], traits)) == "s a|u b"


@pytest.mark.parametrize("traits", [TemplateTraits(), STRICT])
def test_leading_system_messages_are_one(traits: TemplateTraits) -> None:
    """Also for a template that would take several: what they say does not depend on it."""
    messages = arranged([system("a"), system("b"), user("c")], traits)
    assert said(*messages) == ["system: a\n\nb", "user: c"]


def test_a_template_that_takes_late_system_messages_gets_them() -> None:
    """They are what they were, at their place."""
    chat = [system("a"), user("b"), system("c"), answer("d"), user("e"), user("f")]
    assert list(arranged(chat, TemplateTraits())) == chat


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        ([system("a"), user("b"), answer("c"), system("d"), user("e")], "s a|u b|a c|u d+e"),
        ([user("b"), system("c")], "u b|u c"),
        ([user("b"), system("c"), system("d"), answer("e"), user("f")], "u b|u c+d|a e|u f"),
        ([user("b"), CALLING, system("c"), RESULT, RESULT, user("d")], "u b|a |t Blue.|t Blue.|u c+d"),
        ([user("b"), CALLING, RESULT, system("c"), RESULT, system("d")], "u b|a |t Blue.|t Blue.|u c+d"),
        ([user("b"), system("c"), answer("begun")], "u b|u c|a begun"),
    ],
)
def test_a_late_system_message_becomes_the_users_at_its_place(chat: list[Message], expected: str) -> None:
    """The head of the user's next turn or one of its own, and never between a call and its results."""
    assert short(arranged(chat, STRICT)) == expected


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        ([system("a"), user("b")], "u a+b"),
        ([system("a"), system("b"), answer("c"), user("d")], "u a+b|a c|u d"),
        ([system("a")], "u a"),
        ([user("a"), user("b"), answer("c"), system("d"), user("e")], "u a+b|a c|u d+e"),
        ([user("a"), system("b")], "u a+b"),
        ([user("a"), answer("b"), answer("c"), user("d")], "u a|a b+c|u d"),
    ],
)
def test_without_a_system_role_roles_take_turns(chat: list[Message], expected: str) -> None:
    """The instructions are the head of the first question, and the user's messages in a row are one."""
    assert short(arranged(chat, BARE)) == expected


def test_words_after_a_result_that_refuses_a_question_are_its_end() -> None:
    """Mistral's template takes an answer after a result, and nothing else."""
    chat = [user("a"), CALLING, RESULT, user("b"), answer("c"), user("d")]
    assert short(arranged(chat, MISTRAL)) == "u a|a |t Blue.+b|a c|u d"


# Two system messages in the front, one after the question, one after results, and a question that has two parts.
CONVERSATION: list[list[Message]] = [
    [
        system("Be brief."),
        system("Be kind."),
        user("What is above?"),
        system("It is late, and most of them are asleep."),
    ],
    [CALLING, RESULT],
    [CALLING, RESULT, system("Results may be old."), user("Mind the clouds.")],
    [answer("The sky."), user("And below?"), user("Say it briefly.")],
    [answer("The ground."), system("The user has left."), user("Anything else?")],
]


# Mistral's template puts the system message next to the last question, wherever that is.
@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"mistral"}))
def test_the_prompt_of_a_turn_is_the_beginning_of_the_next(name: str) -> None:
    """No template refuses the conversation or loses a word of it, and what was processed for a turn stays of use."""
    tokenizer = with_template(byte_level(), TEMPLATES[name])
    renderer = renderer_of(tokenizer)
    without = [CALLING, RESULT] if name == "gemma" else []
    chat: list[Message] = []
    before = None
    for turn in CONVERSATION:
        chat += [message for message in turn if message not in without]
        # Without thoughts: a model's are dropped from earlier turns by many a template.
        prompt = prepare(renderer, chat, thinking=False)
        text = tokenizer.decode(prompt.tokens)
        for message in chat:
            assert message["content"] in text
        if before is not None:
            common = shared_tokens(before, prompt)
            assert max(place for place in before.checkpoints if place <= common) >= common - 12
            # Thoughts of calls that were answered are dropped by Qwen's, back to the last question.
            assert name == "qwen" or common >= max(before.checkpoints)
        before = prompt


def test_instructions_in_a_question_are_shared() -> None:
    """What conversations have in common ends inside the first question, and a checkpoint is there."""
    renderer = renderer_of(with_template(byte_level(), TEMPLATES["gemma"]))
    rules = system("Answer in one sentence, name what you have seen, and never guess the weather of tomorrow.")
    one, other = (prepare(renderer, [rules, user(question)]) for question in ("Is it blue?", "What is below?"))
    common = shared_tokens(one, other)
    assert common - 12 <= max((place for place in one.checkpoints if place <= common), default=0)


def short(messages: tuple[Any, ...]) -> str:
    """Return messages in very short: the first letters of roles, and `+` where texts were joined."""
    return "|".join(f"{message['role'][0]} {message['content']}".replace("\n\n", "+") for message in messages)
