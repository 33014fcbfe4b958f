"""A client's words for how much to think become what the template knows, and never fail a request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlxd.engine.template_traits import EFFORTS, TemplateTraits, choose_reasoning, nearest_effort
from tests.support.chat_tokenizer import byte_level
from tests.support.prompt import prepare, renderer_of, with_template
from tests.support.templates import TEMPLATES

GPT_OSS, QWEN = ("low", "medium", "high"), ("low", "medium", "xhigh")
HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("effort", "known", "nearest"),
    [
        ("high", GPT_OSS, "high"),
        ("max", GPT_OSS, "high"),
        ("minimal", GPT_OSS, "low"),
        ("none", GPT_OSS, "low"),
        ("high", QWEN, "xhigh"),
        ("max", QWEN, "xhigh"),
        ("medium", ("low", "high"), "high"),
        ("minimal", ("none", "high"), "high"),
        ("none", ("none", "high"), "none"),
        ("high", ("none",), None),
        ("high", (), None),
        ("huge", GPT_OSS, None),
    ],
)
def test_the_nearest_word_is_taken(effort: str, known: tuple[str, ...], nearest: str | None) -> None:
    """The higher of two, and "none" only for who asks for it."""
    assert nearest_effort(effort, known) == nearest


SWITCH = TemplateTraits(efforts=(), thinking="thinking")
BOTH = TemplateTraits(efforts=QWEN)
ALWAYS = TemplateTraits(efforts=(), thinking="enable_thinking", can_stop_thinking=False)
NOTHING = TemplateTraits(efforts=(), thinking=None)


@pytest.mark.parametrize(
    ("effort", "thinking", "traits", "variables"),
    [
        ("high", None, SWITCH, {"thinking": True}),
        ("none", None, SWITCH, {"thinking": False}),
        (None, False, SWITCH, {"thinking": False}),
        ("high", False, SWITCH, {"thinking": False}),
        ("high", None, BOTH, {"enable_thinking": True, "reasoning_effort": "xhigh"}),
        ("none", None, BOTH, {"enable_thinking": False}),
        ("none", True, BOTH, {"enable_thinking": True, "reasoning_effort": "low"}),
        ("none", None, TemplateTraits(efforts=GPT_OSS, thinking=None), {"reasoning_effort": "low"}),
        ("max", None, replace(NOTHING, efforts=GPT_OSS, effort_variable="strength"), {"strength": "high"}),
        (None, False, ALWAYS, {}),
        (None, None, BOTH, {}),
        (None, True, NOTHING, {}),
    ],
)
def test_a_template_is_told_in_its_own_variables(
    effort: str | None, thinking: bool | None, traits: TemplateTraits, variables: dict[str, object]
) -> None:
    """Thinking is switched by the variable that the template has; what a client says of it goes before its effort."""
    chosen = choose_reasoning(effort, thinking, traits)
    assert (chosen.variables, chosen.is_ignored) == (variables, False)


@pytest.mark.parametrize(
    ("effort", "traits"), [("high", NOTHING), ("none", NOTHING), ("none", ALWAYS), ("huge", NOTHING)]
)
def test_an_effort_that_changes_nothing_is_ignored(effort: str, traits: TemplateTraits) -> None:
    """That is told, so that the client can be."""
    assert choose_reasoning(effort, None, traits).is_ignored


def test_a_word_that_no_api_has_switches_nothing() -> None:
    """It is told as ignored, also where the template can switch thinking on."""
    chosen = choose_reasoning("banana", None, BOTH)
    assert (chosen.variables, chosen.is_ignored) == ({}, True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_effort_fails_a_request(name: str) -> None:
    """Every word of every API is taken by every template, and named as ignored where the model does not reason."""
    renderer = renderer_of(with_template(byte_level(), TEMPLATES[name]))
    ignored = {prepare(renderer, HI, reasoning_effort=effort).ignored for effort in EFFORTS}
    assert ignored == ({()} if name in ("qwen", "gpt-oss", "deepseek") else {("reasoning_effort",)})


def test_variables_of_a_request_go_before_its_effort() -> None:
    """Who names a variable of the template knows it."""
    tokenizer = with_template(byte_level(), TEMPLATES["gpt-oss"])
    prompt = prepare(
        renderer_of(tokenizer), HI, reasoning_effort="max", template_kwargs={"reasoning_effort": "extreme"}
    )
    assert "Reasoning: extreme" in tokenizer.decode(prompt.tokens)
