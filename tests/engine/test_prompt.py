"""`engine.prompt`: rendering, tokenizing, and every refusal before anything reaches the device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer

from mlxd.engine.base import (
    ChatPrompt,
    GenerationRequest,
    SamplingParams,
    TextKind,
    TextPrompt,
    TokenPrompt,
)
from mlxd.engine.inputs import InputReader
from mlxd.engine.prompt import PromptRenderer
from mlxd.engine.vector import EmbeddingRequest, Pooling, VectorFacts
from mlxd.protocol.errors import ContextLengthExceeded, GenerationFailed, InvalidRequest
from tests.engine.bench import WriteModel
from tests.support.prompt import FACTS as SUPPORT_FACTS
from tests.support.prompt import renderer_of
from tests.support.tiny_model import write_tiny_model

CHAT = ChatPrompt(({"role": "user", "content": "Hi"},))
FACTS = replace(SUPPORT_FACTS, context_length=100, vocab_size=110)


@pytest.fixture(scope="module")
def tokenizer(write_model: WriteModel) -> Any:
    """The tiny model's."""
    return load_tokenizer(write_model())


@pytest.fixture
def renderer(tokenizer: Any) -> PromptRenderer:
    """A context of 100 tokens."""
    return renderer_of(tokenizer, FACTS)


def test_chat_goes_through_the_template(renderer: PromptRenderer, tokenizer: Any) -> None:
    """The messages are rendered with the beginning of the answer, and special tokens are one token each."""
    prompt = renderer.prepare(GenerationRequest(CHAT))
    assert tokenizer.decode(prompt.tokens) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert len(prompt.tokens) == 1 + 5 + 2 + 1 + 1 + 1 + 10
    assert (prompt.max_tokens, prompt.initial_kind) == (100 - 21, TextKind.CONTENT)
    assert not prompt.is_continuation


def test_text_and_tokens_are_taken_as_they_are(renderer: PromptRenderer, tokenizer: Any) -> None:
    """No template touches them, and the answer continues them."""
    prompts = [renderer.prepare(GenerationRequest(prompt)) for prompt in (TextPrompt("Hi"), TokenPrompt((40, 73)))]
    assert [tokenizer.decode(prompt.tokens) for prompt in prompts] == ["Hi", "Hi"]
    assert all(prompt.is_continuation for prompt in prompts)


@pytest.mark.parametrize(("kwargs", "kind"), [({}, TextKind.REASONING), ({"enable_thinking": False}, TextKind.CONTENT)])
def test_template_that_opens_the_thinking_is_noticed(
    write_model: WriteModel, kwargs: dict[str, bool], kind: TextKind
) -> None:
    """The answer then begins as reasoning, and template arguments reach the template."""
    renderer = renderer_of(load_tokenizer(write_model(open_thinking=True)), FACTS)
    assert renderer.prepare(GenerationRequest(replace(CHAT, template_kwargs=kwargs))).initial_kind is kind


def test_tag_in_a_message_opens_nothing(write_model: WriteModel) -> None:
    """A user may write about tags."""
    renderer = renderer_of(load_tokenizer(write_model(thinking=True)), FACTS)
    chat = ChatPrompt(({"role": "user", "content": "what is <think>"},))
    assert renderer.prepare(GenerationRequest(chat)).initial_kind is TextKind.CONTENT


def test_max_tokens_above_the_room_is_reduced(renderer: PromptRenderer) -> None:
    """What just fits is taken as it is; more becomes that, and a budget of thinking keeps its share of it."""
    request = GenerationRequest(TextPrompt("x" * 90), max_tokens=10, thinking_budget=8)
    as_asked, reduced = (renderer.prepare(replace(request, max_tokens=most)) for most in (10, 20))
    assert (as_asked.max_tokens, as_asked.thinking_budget) == (10, 8)
    assert (reduced.max_tokens, reduced.thinking_budget) == (10, 4)


@pytest.mark.parametrize("max_tokens", [None, 1])
def test_prompt_that_alone_does_not_fit_is_refused_with_both_numbers(
    renderer: PromptRenderer, max_tokens: int | None
) -> None:
    """The words are those that clients look for, the numbers are data."""
    words = r"maximum context length is 100 tokens\. However, your prompt resulted in 100 tokens"
    with pytest.raises(ContextLengthExceeded, match=words) as error:
        renderer.prepare(GenerationRequest(TextPrompt("x" * 100), max_tokens=max_tokens))
    assert error.value.data == {"prompt_tokens": 100, "context_tokens": 100}
    assert error.value.param == "prompt"


@pytest.mark.parametrize(
    "prompt", [TextPrompt("x" * 10**6), ChatPrompt(({"role": "user", "content": "x" * 10**6},))], ids=["text", "chat"]
)
def test_a_text_that_is_far_too_long_is_refused_by_its_beginning(
    write_model: WriteModel, prompt: TextPrompt | ChatPrompt
) -> None:
    """The whole of it is never tokenized; the message has what is known, and the context."""
    tokenizer = load_tokenizer(write_model())
    tokenized: list[int] = []

    def encode(text: str, **options: Any) -> Any:
        tokenized.append(len(text))
        return original(text, **options)

    original, tokenizer._tokenizer.encode = tokenizer._tokenizer.encode, encode
    renderer = renderer_of(tokenizer, FACTS)
    with pytest.raises(ContextLengthExceeded, match=r"length is 100 tokens\..* more than \d+ tokens"):
        renderer.prepare(GenerationRequest(prompt))
    assert max(tokenized) == 1600


def test_a_message_that_is_far_too_long_is_not_even_rendered(
    renderer: PromptRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its 20 MB do not go through the process that renders; what the model itself has said is the template's to cut."""
    rendered: list[object] = []

    def render(*arguments: object) -> tuple[str, str]:
        rendered.append(arguments)
        return "short", "short"

    monkeypatch.setattr(renderer._template._processes, "render", render)
    words = "x" * 10**6
    for role in ("system", "user", "tool"):
        with pytest.raises(ContextLengthExceeded, match="your messages resulted in more than"):
            renderer.prepare(GenerationRequest(ChatPrompt(({"role": role, "content": words},))))
    assert not rendered
    thought = ({"role": "assistant", "content": words}, {"role": "user", "content": "And?"})
    assert renderer.prepare(GenerationRequest(ChatPrompt(thought))).tokens
    assert len(rendered) == 1


@pytest.mark.parametrize("prompt", [TextPrompt(""), TokenPrompt(())])
def test_empty_prompt_is_refused(renderer: PromptRenderer, prompt: TextPrompt | TokenPrompt) -> None:
    """A model needs a token to begin with."""
    with pytest.raises(InvalidRequest, match="empty"):
        renderer.prepare(GenerationRequest(prompt))


@pytest.mark.parametrize("token", [110, -1, 2**40])
def test_unknown_token_is_refused(renderer: PromptRenderer, token: int) -> None:
    """An index outside the embedding would read foreign memory."""
    with pytest.raises(InvalidRequest, match=f"token {token} .*0..109"):
        renderer.prepare(GenerationRequest(TokenPrompt((1, token))))


def test_model_without_a_template_refuses_chat(tokenizer: Any) -> None:
    """The error names the way that works."""
    renderer = renderer_of(tokenizer, replace(FACTS, chat_template=False))
    with pytest.raises(InvalidRequest, match="no chat template") as error:
        renderer.prepare(GenerationRequest(CHAT))
    assert "/v1/completions" in str(error.value.hint)


def test_template_that_refuses_is_the_requests_fault(write_model: WriteModel) -> None:
    """What the template says is passed on."""
    tokenizer = load_tokenizer(write_model())
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequest, match="roles must alternate") as error:
        renderer_of(tokenizer, FACTS).prepare(GenerationRequest(CHAT))
    assert error.value.param == "messages"


def test_a_bias_of_a_token_that_is_not_there_is_refused(renderer: PromptRenderer) -> None:
    """An exception in a sampler costs other rows their tokens, so it is prevented here."""
    request = GenerationRequest(TextPrompt("Hi"), SamplingParams(logit_bias=((110, 1.0),)))
    with pytest.raises(InvalidRequest, match="names token 110; the tokens are") as error:
        renderer.prepare(request)
    assert error.value.param == "logit_bias"


def test_max_tokens_below_one_is_refused(renderer: PromptRenderer) -> None:
    """0 is a value, and not one that can be done."""
    with pytest.raises(InvalidRequest, match="least is 1"):
        renderer.prepare(GenerationRequest(TextPrompt("Hi"), max_tokens=0))


def test_answer_that_is_gone_on_with_is_a_continuation(renderer: PromptRenderer) -> None:
    """Its leading space belongs to it: nothing may be stripped from what follows the client's own words."""
    begun = ChatPrompt((*CHAT.messages, {"role": "assistant", "content": "So"}), continues=True)
    assert renderer.prepare(GenerationRequest(begun)).is_continuation
    assert not renderer.prepare(GenerationRequest(CHAT)).is_continuation


@pytest.mark.parametrize(
    ("begun", "kind"),
    [
        ("<think>\nFirst I", TextKind.REASONING),
        ("<think>", TextKind.REASONING),
        ("<think>a</think>So", TextKind.CONTENT),
        ("<think>a</think>b<think>c", TextKind.REASONING),
        ("So", TextKind.CONTENT),
    ],
)
def test_answer_that_is_begun_inside_the_thinking_continues_it(
    write_model: WriteModel, begun: str, kind: TextKind
) -> None:
    """The text after an open tag is thinking, and what the client asked about tags is not."""
    renderer = renderer_of(load_tokenizer(write_model(thinking=True)), FACTS)
    asked = {"role": "user", "content": "what is <think>"}
    chat = ChatPrompt((asked, {"role": "assistant", "content": begun}), continues=True)
    assert renderer.prepare(GenerationRequest(chat)).initial_kind is kind


def test_answer_that_a_template_begins_with_thinking_continues_it(write_model: WriteModel) -> None:
    """The template may open the thinking before the client's words."""
    tokenizer = load_tokenizer(write_model(thinking=True))
    tokenizer.chat_template = "{% for message in messages %}<think>\n{{ message.content }}{% endfor %}"
    chat = ChatPrompt(({"role": "assistant", "content": "First I"},), continues=True)
    assert renderer_of(tokenizer, FACTS).prepare(GenerationRequest(chat)).initial_kind is TextKind.REASONING


def test_template_that_renders_a_lone_surrogate_is_refused(write_model: WriteModel) -> None:
    """No tokenizer takes half a character: the request is refused in words, and nothing fails."""
    tokenizer = load_tokenizer(write_model())
    tokenizer.chat_template = "{{ '\ud83d' }}"
    with pytest.raises(InvalidRequest, match=r"lone surrogate U\+D83D"):
        renderer_of(tokenizer, FACTS).prepare(GenerationRequest(CHAT))


def test_a_tokenizer_that_fails_at_a_text_is_said_to(tmp_path: Path) -> None:
    """One of WordPiece without an unknown token knows some texts only; that is the model's fault, and said in words."""
    folder = write_tiny_model(tmp_path / "model")
    document = json.loads((folder / "tokenizer.json").read_text())
    document |= {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]"}, "added_tokens": []}
    document["model"] |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    (folder / "tokenizer.json").write_text(json.dumps(document | {"pre_tokenizer": None}))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    tokenizer = load_tokenizer(folder)
    renderer = renderer_of(tokenizer, FACTS)
    assert renderer.prepare(GenerationRequest(TextPrompt("a"), max_tokens=1)).tokens == (0,)
    with pytest.raises(GenerationFailed, match=r"model 'tiny': its tokenizer fails at this text: .*WordPiece error"):
        renderer.prepare(GenerationRequest(TextPrompt("b" * 10), max_tokens=1))
    with pytest.raises(GenerationFailed, match="its tokenizer fails at this text"):
        renderer.prepare(GenerationRequest(TextPrompt("b" * 10_000), max_tokens=1))
    facts = replace(FACTS, vectors=VectorFacts(64, Pooling.MEAN))
    with pytest.raises(GenerationFailed, match="its tokenizer fails at this text"):
        InputReader("tiny", tokenizer, facts).prepare(EmbeddingRequest(("b",)))
