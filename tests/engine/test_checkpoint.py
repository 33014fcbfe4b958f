"""`engine.checkpoint`: later prompts of a conversation, and others with the same head, begin with tokens[:k]."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import NewlineTokenizer, TokenizerWrapper
from mlx_lm.utils import load_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer

from mlxd.engine.base import GenerationRequest, TextPrompt, TokenPrompt
from mlxd.engine.checkpoint import MARK, marked_messages, places, positions
from mlxd.engine.process import Bounds, Processes
from mlxd.engine.tool import ToolUse
from tests.engine.bench import WriteModel
from tests.support.chat_template import CHATML, REAL
from tests.support.chat_tokenizer import KINDS, byte_level
from tests.support.prompt import prepare, renderer_of, shared_tokens, with_template

Message = Mapping[str, Any]

# Tokens that may be computed again: what a template puts between two messages, and a few more.
DOZEN = 12
# This one writes the id of a call after its result.
MISTRAL = 20

TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Return what {name} knows of a place, on one day or on several.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
    for name in ("weather", "traffic", "events")
)
SYSTEM = {"role": "system", "content": " You are a careful assistant. Answer in one sentence, and say what you saw. \n"}
QUESTIONS = (
    {"role": "user", "content": "What is the weather like in Paris today?\n"},
    {"role": "user", "content": "And tomorrow? Please tell me whether I need an umbrella."},
    {"role": "user", "content": "Thank you. Now the same for Rome, with the traffic."},
)
OTHER = {"role": "user", "content": "\nList three events in Berlin, with the price of each."}
ANSWERS = (
    {"role": "assistant", "content": "It is sunny.", "reasoning_content": "The user asks about Paris; I know that."},
    {"role": "assistant", "content": "It will rain.", "reasoning_content": "Tomorrow is another day, so I look again."},
)


def call(number: int) -> dict[str, Any]:
    """Return a turn that calls a tool, after some thinking."""
    function = {"name": "weather", "arguments": {"place": f"Paris {number}"}}
    return {
        "role": "assistant",
        "content": "",
        "reasoning_content": f"I have to look at the sky, for the {number}th time.",
        "tool_calls": [{"id": f"call{number:05d}", "type": "function", "function": function}],
    }


def result(number: int, content: str = '{"sky": "blue", "degrees": 21}') -> dict[str, Any]:
    """Return what the tool has found."""
    return {"role": "tool", "tool_call_id": f"call{number:05d}", "content": content}


Q1, Q2, Q3 = QUESTIONS
A1, A2 = ANSWERS
LOOP = (Q1, call(1), result(1))
# A prompt, and one that comes later.
TALK: dict[str, tuple[tuple[Message, ...], tuple[Message, ...]]] = {
    "second turn": ((Q1,), (Q1, A1, Q2)),
    "third turn": ((Q1, A1, Q2), (Q1, A1, Q2, A2, Q3)),
    "another question": ((Q1,), (OTHER,)),
    "another question, later": ((Q1, A1, Q2), (OTHER,)),
    "edited": ((Q1, A1, Q2), (Q1, A1, OTHER)),
    "again": ((Q1, A1, Q2), (Q1, A1, Q2)),
    "said twice": ((Q1, A1, Q1), (Q1, A1, Q1, A2, Q3)),
}
TOOL_USE: dict[str, tuple[tuple[Message, ...], tuple[Message, ...]]] = {
    "first call": ((Q1,), LOOP),
    "second call": (LOOP, (*LOOP, call(2), result(2))),
    "nothing found": (
        (Q1, call(1), result(1, "")),
        (Q1, call(1), result(1, ""), call(2), result(2)),
    ),
    "call in a later turn": ((Q1, A1, Q2), (Q1, A1, Q2, call(1), result(1))),
    "after the calls": (LOOP, (*LOOP, A1, Q2)),
    "after the calls, edited": ((*LOOP, A1, Q2), (*LOOP, A1, OTHER)),
    "after the calls, third turn": ((*LOOP, A1, Q2), (*LOOP, A1, Q2, A2, Q3)),
    "calls again": (LOOP, LOOP),
}
NO_TOOLS = {"gemma 3"}


def text_tokens(tokenizer: Any, *messages: Message) -> tuple[int, ...]:
    """Return the tokens of the text that transformers renders."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REAL)
def test_a_later_prompt_leaves_right_after_a_checkpoint(kind: str, name: str) -> None:
    """The last checkpoint that both prompts begin with is within a dozen tokens of where they part."""
    renderer = renderer_of(with_template(KINDS[kind](), REAL[name]))
    for tools in (None,) if name in NO_TOOLS else (None, ToolUse(TOOLS)):
        stories = TALK if tools is None else TALK | TOOL_USE
        for (story, (one, other)), head in itertools.product(stories.items(), ((), (SYSTEM,))):
            first, second = (prepare(renderer, (*head, *messages), tools=tools) for messages in (one, other))
            common = shared_tokens(first, second)
            at_most = MISTRAL if name == "mistral" else DOZEN
            used = max((k for k in first.checkpoints if k <= common), default=0)
            assert used >= common - at_most, (
                f"{story}, {tools is not None}, {bool(head)}: {first.checkpoints}, {common}"
            )
            assert list(first.checkpoints) == sorted({k for k in first.checkpoints if 0 < k < len(first.tokens)})
            assert len(first.checkpoints) <= 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REAL)
def test_tokens_are_those_of_the_text_without_marks(kind: str, name: str) -> None:
    """Looking for checkpoints changes no token."""
    tokenizer = with_template(KINDS[kind](), REAL[name])
    prompt = prepare(renderer_of(tokenizer), (SYSTEM, Q1, A1, Q2))
    assert prompt.checkpoints
    assert prompt.tokens == text_tokens(tokenizer, SYSTEM, Q1, A1, Q2)


def test_checkpoints_are_next_to_the_contents() -> None:
    """Before the first question, after the answer before the last, after the last, and after the last message.

    One token before each is left to what comes next; what is hardly apart from the one before is left out.
    """
    tokenizer = with_template(byte_level(), CHATML)
    prompt = prepare(renderer_of(tokenizer), (SYSTEM, Q1, A1, Q2, *LOOP[1:]))
    ends = [tokenizer.decode(list(prompt.tokens[:k])) for k in prompt.checkpoints]
    assert [end.rpartition("<|im_start|>")[2] for end in ends] == [
        "user",
        "assistant\nIt is sunny",
        "user\nAnd tomorrow? Please tell me whether I need an umbrella",
        'tool\n{"sky": "blue", "degrees": 21',
    ]


def test_the_last_one_lies_before_the_thoughts(write_model: WriteModel) -> None:
    """What the template writes at the beginning of every answer is in the next prompt; an open tag is not."""
    tokenizer = load_tokenizer(write_model(open_thinking=True))
    prompt = prepare(renderer_of(tokenizer), ({"role": "user", "content": "A question that is long enough."},))
    rest = tokenizer.decode(list(prompt.tokens[prompt.checkpoints[-1] :]))
    assert rest == "\n<think>\n"


def test_an_answer_that_is_begun_is_no_end() -> None:
    """It grows with every retry: the last checkpoint comes before it."""
    renderer = renderer_of(with_template(byte_level(), CHATML))
    asked = prepare(renderer, (SYSTEM, Q1)).checkpoints
    for begun in ("It will be", "It will be quite different tomorrow, because"):
        answer = {"role": "assistant", "content": begun}
        assert prepare(renderer, (SYSTEM, Q1, answer), continues=True).checkpoints == asked
        assert prepare(renderer, (answer,), continues=True).checkpoints == ()


def test_prompts_that_are_no_chat_have_none() -> None:
    """Nobody knows where another one leaves them."""
    renderer = renderer_of(byte_level())
    for prompt in (TextPrompt("Once upon a time, " * 9), TokenPrompt(tuple(range(100)))):
        assert renderer.prepare(GenerationRequest(prompt)).checkpoints == ()


LOOKS = "{% if '" + MARK + "' in messages | tojson %}"
HOSTILE = {
    "refuses": LOOKS + "{{ raise_exception('no') }}{% endif %}" + CHATML,
    "endless": LOOKS + "{% for i in range(99999) %}" * 2 + "{% endfor %}" * 2 + "{% endif %}" + CHATML,
    "other text": LOOKS + "Something else." + "{% endif %}" + CHATML + "{{ messages | tojson | length }}",
    "escapes": "{{ messages | tojson(ensure_ascii=true) }}",
    "counts": "{% for message in messages %}{{ message.content | length }} characters, {% endfor %}and so on",
    "repeats": "{% for message in messages * 9 %}{{ message.content }}{% endfor %}",
    "ignores": "This is always the same text, whatever the messages may be.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_template_that_cannot_be_marked_has_none(name: str) -> None:
    """Whatever it makes of the marks, the prompt is the same, and there are no checkpoints."""
    tokenizer = with_template(byte_level(), HOSTILE[name])
    processes = Processes(Bounds(second_s=0.2))
    prompt = prepare(renderer_of(tokenizer, processes=processes), (SYSTEM, Q1, A1, Q2))
    processes.close()
    assert prompt.tokens == text_tokens(tokenizer, SYSTEM, Q1, A1, Q2)
    assert prompt.checkpoints == ()


def test_template_that_rewrites_contents_has_checkpoints() -> None:
    """What counts is where a content is written, and not how."""
    template = "{% for message in messages %}[{{ message.role }}] {{ message.content | upper }}\n{% endfor %}[answer]"
    renderer = renderer_of(with_template(byte_level(), template))
    first, second = (prepare(renderer, (SYSTEM, Q1, A1, question)) for question in (Q2, OTHER))
    common = shared_tokens(first, second)
    assert common - DOZEN <= max(k for k in first.checkpoints if k <= common) < first.checkpoints[-1]


def test_mark_in_a_message_is_none() -> None:
    """A client may send any character: it reaches the model, and costs this prompt its checkpoints."""
    tokenizer = with_template(byte_level(), CHATML)
    odd = {"role": "user", "content": f"What does {MARK} mean, in the middle of a question?"}
    prompt = prepare(renderer_of(tokenizer), (SYSTEM, odd))
    assert prompt.tokens == text_tokens(tokenizer, SYSTEM, odd)
    assert prompt.checkpoints == ()


def test_contents_that_templates_look_at_are_not_marked() -> None:
    """An empty one beside calls stays empty, and what is no text stays as it is; messages are not changed."""
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    messages = (SYSTEM, parts, call(1), {"role": "assistant", "content": None}, Q1)
    assert marked_messages(messages, continues=False) == {
        0: {**SYSTEM, "content": " " + MARK + str(SYSTEM["content"]).lstrip()},
        4: {**Q1, "content": f"{MARK}{Q1['content'].rstrip()}{MARK}\n"},
    }
    assert marked_messages((Q1, call(1), Q2), continues=False).keys() == {0, 2}
    assert not any(MARK in message["content"] for message in (SYSTEM, Q1))


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_content_is_marked(content: str) -> None:
    """The place of a result in which a tool has found nothing is where the next call begins."""
    marked = marked_messages((Q1, call(1), result(1, content)), continues=False)
    assert marked[2]["content"].strip() == MARK


def test_a_chat_of_instructions_only_is_marked() -> None:
    """Where no message comes after the instructions, the first one stands for it."""
    marked = marked_messages(({"role": "system", "content": "Be brief."},), continues=False)
    assert marked == {0: {"role": "system", "content": f"{MARK}Be brief.{MARK}"}}


def test_no_messages_have_no_marks() -> None:
    """Templates decide what to make of that."""
    assert marked_messages((), continues=False) == marked_messages((Q1,), continues=True) == {}


@pytest.mark.parametrize(
    ("text", "marked", "expected"),
    [
        ("abc", "-a-b-c-", [0, 1, 2, 3]),
        ("abc", "a--bc", [1]),
        ("abc", "aX-b-c", [1, 2]),
        ("abc", "a-b-cX", [1, 2]),
        ("abcd", "a-bX-cXd-", [1, 4]),
        ("abc", "aX-bXc", []),
        ("abc", "xyz", []),
        ("abc", "", []),
        ("", "-", [0]),
        ("a-c", "-a-c-", []),
        ("a" * 9, "-a" * 9, []),
    ],
)
def test_place_counts_where_one_side_of_it_is_the_same(text: str, marked: str, expected: list[int]) -> None:
    """Everything before a mark, or everything after it, is in both texts."""
    assert places(text.replace("-", MARK), marked.replace("-", MARK)) == expected


@pytest.mark.parametrize("dropped", ["", "\x00\x00\x00"])
def test_place_is_found_among_tokens_that_are_in_no_text(dropped: str) -> None:
    """Special tokens that the tokenizer adds have no place, and neither have characters that it drops."""
    words = Tokenizer(models.WordLevel({"<s>": 0, **{f"w{number}": number + 1 for number in range(30)}}))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    text = "".join(f"w{number}{dropped} " for number in range(30))
    encoding = words.encode(text)
    assert len(encoding.ids) == 31
    w10 = text.index("w10")
    assert positions(encoding, [0, w10 - 1, w10, w10 + 1, text.index("w20"), len(text)]) == (10, 20, 30)


def test_python_that_renders_is_asked_for_places_too() -> None:
    """A renderer of mlx-lm or transformers is called once more; one that refuses marks gives none."""
    tokenizer = with_template(byte_level(), CHATML)
    by_template = prepare(renderer_of(tokenizer), (SYSTEM, Q1, A1, Q2))

    def render(messages: list[Message], **options: Any) -> str:
        if refuses and any(MARK in message["content"] for message in messages):
            raise ValueError
        return str(tokenizer._tokenizer.apply_chat_template(messages, tokenize=False, **options))

    tokenizer._chat_template = render
    try:
        refuses = False
        assert prepare(renderer_of(tokenizer), (SYSTEM, Q1, A1, Q2)) == by_template
        refuses = True
        assert prepare(renderer_of(tokenizer), (SYSTEM, Q1, A1, Q2)) == replace(by_template, checkpoints=())
    finally:
        tokenizer._chat_template = None


def newlines() -> TokenizerWrapper:
    """Return a tokenizer that changes a text before it encodes it."""
    return TokenizerWrapper(NewlineTokenizer(tokenizer_object=byte_level()._tokenizer._tokenizer, eos_token="</s>"))


def in_python() -> TokenizerWrapper:
    """Return a tokenizer that is no part of the `tokenizers` library."""
    return TokenizerWrapper(ByT5Tokenizer())


@pytest.mark.parametrize("made", [newlines, in_python])
def test_tokenizer_that_says_no_places_gives_none(made: Callable[[], TokenizerWrapper]) -> None:
    """Its tokens are what counts."""
    tokenizer = with_template(made(), CHATML)
    prompt = prepare(renderer_of(tokenizer), (SYSTEM, Q1, A1, Q2))
    assert prompt.tokens == text_tokens(tokenizer, SYSTEM, Q1, A1, Q2)
    assert prompt.checkpoints == ()
