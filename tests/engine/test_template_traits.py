"""`engine.template_traits`: what is learned of chat templates by rendering small chats with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mlxd.engine.chat_template import ChatTemplate
from mlxd.engine.process import Bounds, Processes
from mlxd.engine.template_traits import EFFORTS, TemplateTraits
from tests.support.chat_template import QWEN_3
from tests.support.chat_tokenizer import byte_level
from tests.support.processes import PROCESSES
from tests.support.prompt import with_template
from tests.support.templates import TEMPLATES

LENIENT = TemplateTraits(efforts=(), thinking=None, can_stop_thinking=False)
IN_TURN = replace(LENIENT, takes_system_alone=False, takes_late_system=False, takes_users_in_a_row=False)


def traits_of(template: str, processes: Processes = PROCESSES) -> TemplateTraits:
    """Learn what a template takes."""
    return ChatTemplate("tiny", with_template(byte_level(), template), processes).traits(None, lambda: False)


@pytest.mark.parametrize(
    ("name", "traits"),
    [
        (
            "qwen",
            TemplateTraits(
                takes_system_alone=False,
                takes_late_system=False,
                efforts=("low", "medium", "xhigh"),
                thinking="enable_thinking",
            ),
        ),
        ("gpt-oss", replace(LENIENT, takes_late_system=False, efforts=("low", "medium", "high"))),
        ("llama", LENIENT),
        (
            "gemma",
            replace(
                LENIENT,
                takes_system=False,
                takes_system_alone=False,
                takes_late_system=False,
                takes_users_in_a_row=False,
            ),
        ),
        (
            "mistral",
            replace(IN_TURN, takes_user_after_tool=False),
        ),
        ("deepseek", TemplateTraits(takes_late_system=False, efforts=(), thinking="thinking")),
        ("plain", LENIENT),
    ],
)
def test_a_template_is_known_by_what_it_does(name: str, traits: TemplateTraits) -> None:
    """One raises, another drops or moves a message without a word; variables are found by the text that they change."""
    assert traits_of(TEMPLATES[name]) == traits


def test_a_switch_without_efforts_is_found() -> None:
    """Qwen3 knows whether to think, and not how much."""
    traits = traits_of(QWEN_3)
    assert (traits.thinking, traits.can_stop_thinking, traits.efforts) == ("enable_thinking", True, ())


@pytest.mark.parametrize(
    ("template", "efforts"),
    [
        ("{{ reasoning_effort }}", ("low", "medium", "high")),
        ("{{ reasoning_effort | default('medium') }}", ("low", "medium", "high")),
        ("{% if reasoning_effort not in ['none', 'high'] %}{% endif %}{{ reasoning_effort }}", ("none", "high")),
        ("{{ raise_exception('no') if reasoning_effort | default('high') not in 'none high' }}", ("none", "high")),
        ("{% if reasoning_effort == 'low' %}Think less.{% endif %}", ("low", "medium")),
        (
            "{% if reasoning_effort == 'max' %}Think.{% elif reasoning_effort == 'high' %}{% endif %}",
            ("medium", "high", "max"),
        ),
        ("{% if 'low' in messages %}{% endif %}", ()),
    ],
)
def test_effort_words_are_those_that_a_template_tells_apart(template: str, efforts: tuple[str, ...]) -> None:
    """It may print, compare or refuse them; one that prints any knows the words that it names, or the usual ones."""
    assert traits_of(template + "{{ messages[0].content }}").efforts == efforts


def test_a_variable_of_another_name_is_found() -> None:
    """Some templates call it a strength."""
    traits = traits_of("{{ messages[0].content }} {{ reasoning_strength | default('high') }}")
    assert (traits.effort_variable, traits.efforts) == ("reasoning_strength", ("low", "medium", "high"))


def test_thinking_that_cannot_be_turned_off_is_known() -> None:
    """The template raises."""
    traits = traits_of(
        "{{ raise_exception('no') if not enable_thinking }}{{ messages[0].content }}{{ '<think>' if enable_thinking }}"
    )
    assert (traits.thinking, traits.can_stop_thinking) == ("enable_thinking", False)


def test_nothing_is_learned_of_a_template_that_does_not_end() -> None:
    """Its prompts are made as if it took all, and fail by themselves."""
    processes = Processes(Bounds(deadline_s=0.3))
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}" + "{% endfor %}" * 3
    try:
        assert traits_of(endless, processes) == TemplateTraits()
    finally:
        processes.close()


def test_a_template_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was learned is kept for as long as the model is loaded."""
    asked: list[Any] = []
    monkeypatch.setattr(PROCESSES, "probe", lambda job, _: asked.append(job))
    template = ChatTemplate("tiny", with_template(byte_level(), TEMPLATES["llama"]), PROCESSES)
    assert template.traits(None, lambda: False) == template.traits(None, lambda: False) == TemplateTraits()
    assert len(asked) == 1
    assert TemplateTraits().efforts == EFFORTS
