"""Answers bound to a grammar, in a batch with free ones; what cannot be enforced is refused before."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import pytest
from jsonschema import Draft202012Validator

from mlxd.engine.base import ChatPrompt, GenerationRequest, PreparedPrompt, SamplingParams, TextKind, TextPrompt
from mlxd.engine.constraint import Constraint, JsonConstraint, LarkConstraint, ToolConstraint
from mlxd.engine.grammar import Grammar, Grammars, _grammar_text
from mlxd.engine.loader import LoadedModel
from mlxd.engine.process import Bounds, Processes
from mlxd.protocol.errors import CapacityError, InvalidRequest
from tests.engine.bench import WriteModel
from tests.support.stepped_model import SteppedModel, load_now
from tests.support.tiny_model import token_id

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def loaded(write_model: WriteModel) -> LoadedModel:
    """The tiny model."""
    return load_now(write_model())


@pytest.fixture(scope="module")
def thinker(write_model: WriteModel) -> LoadedModel:
    """A model that may think."""
    return load_now(write_model(thinking=True))


@pytest.fixture
def stepped(loaded: LoadedModel) -> SteppedModel:
    """The model, to be stepped by hand."""
    return SteppedModel(loaded)


def bound(stepped: SteppedModel, constraint: Constraint, text: str = "Say", max_tokens: int = 200) -> PreparedPrompt:
    """Prepare a prompt whose answer is bound."""
    request = GenerationRequest(TextPrompt(text), max_tokens=max_tokens, constraint=constraint)
    return stepped.renderer.prepare(request)


def schema(value: Any) -> JsonConstraint:
    """Return the constraint of a schema."""
    return JsonConstraint(json.dumps(value))


@pytest.mark.parametrize("seed", range(6))
def test_answer_satisfies_its_schema(stepped: SteppedModel, seed: int) -> None:
    """Whatever the model would rather say, the whole answer is a document of the schema, and ends there."""
    sampling = SamplingParams(temperature=1.5, seed=seed)
    sequence = stepped.say(bound(stepped, schema(SCHEMA)), sampling)

    Draft202012Validator(SCHEMA).validate(json.loads(sequence.text()))
    assert sequence.reason.value == "stop"


def test_json_without_a_schema_is_an_object(stepped: SteppedModel) -> None:
    """`json_object` gives an object and nothing else."""
    text = stepped.say(bound(stepped, JsonConstraint(), max_tokens=1500), SamplingParams(temperature=1, seed=5)).text()

    assert text.startswith("{")


def test_bound_rows_leave_the_others_alone(stepped: SteppedModel) -> None:
    """Free rows in the same batch say what they say alone, and so do bound ones."""
    free_alone = stepped.say("Once upon a time", max_tokens=60).text()
    bound_alone = stepped.say(bound(stepped, schema(SCHEMA))).text()

    rows = [stepped.start("Once upon a time", max_tokens=60), stepped.start(bound(stepped, schema(SCHEMA)))]
    stepped.run(*rows)

    assert [row.text() for row in rows] == [free_alone, bound_alone]


def test_bound_row_goes_on_after_a_pause(stepped: SteppedModel) -> None:
    """The grammar stands where the text stands, not where the batch was."""
    prompt = bound(stepped, schema(SCHEMA))
    alone = stepped.say(prompt).text()
    sequence = stepped.start(prompt)
    while len(sequence.text()) < 9:
        stepped.step()
    stepped.model.pause(sequence.sequence_id)
    stepped.model.resume(sequence.sequence_id, 2000)
    stepped.run(sequence)

    assert sequence.text() == alone


def test_thinking_is_free_and_the_answer_is_bound(thinker: LoadedModel) -> None:
    """A model may think before it answers; only the answer is the document."""
    stepped = SteppedModel(thinker)
    start, end = (token_id(tag, thinking=True) for tag in ("<think>", "</think>"))
    prompt = bound(stepped, schema(SCHEMA))
    grammar = prompt.grammar
    assert isinstance(grammar, Grammar)

    opening = stepped.start(prompt, SamplingParams(temperature=0, logit_bias=((start, 100.0),)))
    while len(opening.text(TextKind.REASONING)) < 5:
        stepped.step()
    assert opening.text() == ""

    processor = grammar.processor([start, 40, 41, end], is_thinking=False)
    document = stepped.renderer.prepare(GenerationRequest(TextPrompt('{"name":"x'))).tokens
    for token in document:
        processor.take(token)


def test_prompt_that_opens_the_thinking_is_bound_after_its_end(write_model: WriteModel) -> None:
    """The template's open tag counts as the beginning of the thinking."""
    stepped = SteppedModel(load_now(write_model(open_thinking=True)))
    chat = ChatPrompt(({"role": "user", "content": "Hi"},))
    prompt = stepped.renderer.prepare(GenerationRequest(chat, max_tokens=20, constraint=schema(SCHEMA)))

    sequence = stepped.say(prompt)

    assert sequence.text() == ""
    assert len(sequence.text(TextKind.REASONING)) == 20


def test_text_of_a_lark_grammar(stepped: SteppedModel) -> None:
    """Any context-free language will do."""
    constraint = LarkConstraint('start: "yes" | "no"', "tool_choice")

    assert stepped.say(bound(stepped, constraint)).text() in {"yes", "no"}


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "shoe-size"}, "shoe-size"),
        ({"$ref": "#/$defs/missing"}, "missing"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "colour"}, "colour"),
        ({"enum": []}, "Unsatisfiable"),
        (False, "object"),
    ],
    ids=str,
)
def test_what_cannot_be_enforced_is_refused_by_name(stepped: SteppedModel, bad: Any, word: str) -> None:
    """The message names the keyword, and nothing of the parser's insides."""
    with pytest.raises(InvalidRequest, match=word) as caught:
        bound(stepped, schema(bad))

    assert caught.value.param == "response_format"
    assert "<state>" not in caught.value.message


def test_grammars_are_compiled_once(stepped: SteppedModel) -> None:
    """An equal constraint is known already."""
    first, second = (bound(stepped, schema(SCHEMA)).grammar for _ in range(2))

    assert first is second


def test_failing_grammar_fails_its_row_and_no_other(stepped: SteppedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a processor would cost the others their tokens; it is an error of one request."""
    prompt = bound(stepped, schema(SCHEMA))
    alone = stepped.say("Once upon a time", max_tokens=60).text()
    assert isinstance(prompt.grammar, Grammar)
    make = prompt.grammar.processor

    def broken(*given: Any, **options: Any) -> Any:
        processor = make(*given, **options)
        processor._matcher = None
        return processor

    monkeypatch.setattr(prompt.grammar, "processor", broken)
    failing, other = stepped.start(prompt), stepped.start("Once upon a time", max_tokens=60)
    stepped.run(failing, other)

    assert "grammar" in failing.error.message
    assert other.text() == alone


def test_spent_thinking_budget_ends_the_thinking(write_model: WriteModel) -> None:
    """The closing tag is forced when the budget is spent, over a pause too; then the model answers."""
    stepped = SteppedModel(load_now(write_model(open_thinking=True)))
    chat = ChatPrompt(({"role": "user", "content": "Hi"},))
    prompt = stepped.renderer.prepare(GenerationRequest(chat, max_tokens=60))
    sequence = stepped.start(prompt, thinking_budget=7)
    while len(sequence.text(TextKind.REASONING)) < 4:
        stepped.step()
    stepped.model.pause(sequence.sequence_id)
    stepped.model.resume(sequence.sequence_id, 2000)
    stepped.run(sequence)

    assert len(sequence.text(TextKind.REASONING)) == 7
    assert len(sequence.text()) == 60 - 7 - 1  # the closing tag is a token


@pytest.mark.parametrize("wrong", [{"required": 5}, {"required": [{}]}, {"properties": 5}, {"anyOf": 5}], ids=str)
def test_malformed_tool_schema_is_refused(write_model: WriteModel, wrong: Any) -> None:
    """Whatever a client calls a schema: a 400, and no failure of ours."""
    stepped = SteppedModel(load_now(write_model(tools=True)))
    parameters = {"type": "object", "properties": {"a": {"type": "string"}}} | wrong
    functions = json.dumps([{"name": "f", "parameters": parameters, "strict": True}])
    with pytest.raises(InvalidRequest):
        bound(stepped, ToolConstraint(functions, True, True, "tool_choice"))


def nested(levels: int) -> JsonConstraint:
    """Return a schema whose compilation overflows the stack of the thread that it is done on."""
    chain: dict[str, Any] = {
        f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(levels)
    }
    return schema({"$defs": {**chain, f"d{levels}": {"type": "string"}}, "$ref": "#/$defs/d0"})


OVER_LIMITS = {
    "a pattern of a million": (schema({"type": "string", "pattern": "^a{1000000}$"}), "too many expressions"),
    "5000 alternatives": (
        schema({"anyOf": [{"type": "object", "properties": {f"n{i}": {"type": "string"}}} for i in range(3000)]}),
        "3000 items; max is 2000",
    ),
    "optional properties": (
        schema({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}}),
        "max is 2000",
    ),
    "a long schema": (schema({"enum": ["x" * 300_000]}), "limit is 262144"),
    "a deep chain": (nested(2300), "crashed the process"),
}


@pytest.mark.parametrize("name", OVER_LIMITS)
def test_schema_over_a_limit_is_refused_by_it(stepped: SteppedModel, name: str) -> None:
    """The limit is named before anything runs, nothing of it is kept, and the next schema works."""
    constraint, words = OVER_LIMITS[name]
    with pytest.raises(InvalidRequest, match=f"response_format: the schema cannot be enforced: .*{words}"):
        bound(stepped, constraint)
    assert stepped.renderer.grammars.held_bytes == 0
    assert bound(stepped, schema(SCHEMA)).grammar is not None


def test_grammar_whose_compilation_does_not_end_is_refused(loaded: LoadedModel) -> None:
    """It is ended at the deadline, in a process of its own."""
    processes = Processes(Bounds(deadline_s=0.5))
    grammars = Grammars(loaded.tokenizer, loaded.vocabulary, loaded.facts.vocab_size, processes)
    try:
        with pytest.raises(InvalidRequest, match=r"compiling it (did not end within 0\.5 s|takes|crashed)"):
            grammars.compile(schema({"type": "integer", "multipleOf": 99_999_989}))
    finally:
        processes.close()
    assert grammars.held_bytes == 0


def test_grammars_are_bounded_by_what_they_take(stepped: SteppedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go when new ones come, those of answers that run are counted, and a trim leaves these only."""
    grammars = stepped.renderer.grammars
    running = bound(stepped, schema({"const": 0}))
    one_bytes = grammars.held_bytes
    assert one_bytes > 100_000
    monkeypatch.setattr("mlxd.engine.grammar._KEPT_BYTES", 3 * one_bytes)
    for number in range(1, 6):
        bound(stepped, schema({"const": number}))
    assert grammars.held_bytes == 4 * one_bytes  # the three newest, and the one in use
    oldest = schema({"const": 3})
    used = bound(stepped, oldest).grammar
    bound(stepped, schema({"const": 6}))
    assert bound(stepped, oldest).grammar is used
    del used
    grammars.trim(0)
    assert grammars.held_bytes == one_bytes
    del running
    assert grammars.held_bytes == 0


def test_grammar_that_is_used_weighs_more(stepped: SteppedModel) -> None:
    """Its lexer learns from every token, and the next look counts that."""
    constraint = schema({"type": "string", "minLength": 20, "maxLength": 20})
    prompt = bound(stepped, constraint)
    before_bytes = stepped.renderer.grammars.held_bytes
    stepped.run(stepped.start(prompt))
    bound(stepped, constraint)
    assert stepped.renderer.grammars.held_bytes >= before_bytes + 20 * 4096


def test_grammars_of_running_answers_leave_no_room_for_more(
    stepped: SteppedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept gives way first; what runs does not, and the error says so with numbers."""
    running = bound(stepped, schema({"const": 0}))
    bound(stepped, schema({"const": 1}))
    one_bytes = stepped.renderer.grammars.held_bytes // 2
    monkeypatch.setattr("mlxd.engine.grammar._MOST_BYTES", 2 * one_bytes)
    second = bound(stepped, schema({"const": 2}))
    with pytest.raises(CapacityError, match="running answers take") as error:
        bound(stepped, schema({"const": 3}))
    assert error.value.retry_after_s is not None
    assert running.grammar is not None
    assert second.grammar is not None


def test_answer_that_comes_to_a_limit_is_the_requests_fault(stepped: SteppedModel) -> None:
    """A part of the schema that only some answers reach is too large: the limit is named, others go on."""
    alternatives = [{"type": "object", "properties": {f"n{i}": {"type": "string"}}} for i in range(2500)]
    prompt = bound(
        stepped, schema({"anyOf": [{"const": '"' * 40}, {"type": "array", "items": {"anyOf": alternatives}}]})
    )
    bias = ((token_id("["), 90.0), (token_id("{"), 100.0))
    over = stepped.start(prompt, SamplingParams(temperature=0.0, logit_bias=bias))
    other = stepped.start("Hi")
    stepped.run(over, other)
    assert isinstance(over.error, InvalidRequest)
    assert "response_format: the answer cannot be bound any further" in over.error.message
    assert "max is 2000" in over.error.message
    assert other.usage.completion_tokens == 20


def test_schema_may_be_as_long_as_the_limit(stepped: SteppedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One character more is too long."""
    grammar = LarkConstraint('start: "ab"', "grammar")
    text = _grammar_text(grammar)
    monkeypatch.setattr("mlxd.engine.grammar._MOST_SCHEMA_BYTES", len(text))
    assert bound(stepped, grammar).grammar is not None
    with pytest.raises(InvalidRequest, match=f"it has {len(text) + 1} characters, and the limit is {len(text)}"):
        bound(stepped, LarkConstraint('start: "abc"', "grammar"))


def test_limit_that_is_reached_by_a_mask_ends_the_answer(stepped: SteppedModel) -> None:
    """A matcher that has failed allows only the end, which would pass for a whole answer."""

    class Failed:
        def deep_copy(self) -> Failed:
            return self

        def is_stopped(self) -> bool:
            return False

        def is_error(self) -> bool:
            return True

        def compute_logit_bias(self) -> bytes:
            return bytes(stepped.loaded.facts.vocab_size)

        def get_error(self) -> str:
            return "too many states: 5 >= 5 <state> Tokens"

    processor = Grammar(Failed(), stepped.loaded.tokenizer, "response_format", 0, 0).processor((), is_thinking=False)
    with pytest.raises(InvalidRequest, match=r"any further: too many states: 5 >= 5$"):
        processor(mx.array([1]), mx.zeros((1, stepped.loaded.facts.vocab_size)))
