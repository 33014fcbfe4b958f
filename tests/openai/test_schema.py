"""What every body field does: works, is refused by name, or changes nothing and is accepted."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from mlxd.engine.base import ChatPrompt, GenerationRequest, SamplingParams, TextPrompt, TokenPrompt
from mlxd.http.dispatch import model_of
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.http.sampling import Sampling
from mlxd.http.schema import fields_of
from mlxd.openai.schema import (
    ChatBody,
    CompletionBody,
    ParsedBody,
    parse_chat,
    parse_completion,
)
from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter

HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ParsedBody:
    """Parse a chat body with these fields."""
    return parse_chat({"model": "m", "messages": HI} | fields, NoiseFilter(), Omissions("m"))


def left_out(**fields: Any) -> list[str]:
    """Parse a chat body with these fields; return what is left out of it."""
    omitted = Omissions("m")
    parse_chat({"model": "m", "messages": HI} | fields, NoiseFilter(), omitted)
    return list(omitted.names)


def completion(**fields: Any) -> ParsedBody:
    """Parse a completion body with these fields."""
    return parse_completion({"model": "m", "prompt": "hi"} | fields, Omissions("m"))


def only(parsed: ParsedBody) -> GenerationRequest:
    """Return the one request."""
    (request,) = parsed.requests
    return request


@pytest.mark.parametrize(
    ("shape", "params"),
    [
        (ChatBody, chat_create_params.CompletionCreateParamsStreaming),
        (CompletionBody, completion_create_params.CompletionCreateParamsStreaming),
    ],
)
def test_every_field_of_the_official_client_is_known(shape: type[msgspec.Struct], params: type) -> None:
    """A field that OpenAI documents is never treated as unknown."""
    assert set(typing.get_type_hints(params)) <= {*fields_of(shape), *fields_of(Sampling)}


def test_defaults_are_neutral() -> None:
    """A body with nothing but a prompt asks for plain sampling up to the end of the context."""
    assert chat() == ParsedBody(
        (GenerationRequest(ChatPrompt(({"role": "user", "content": "hi"},))),),
        stream=False,
        include_usage=False,
    )


@pytest.mark.parametrize("name", ["temperature", "max_tokens", "stop", "logit_bias", "stream", "messages", "n"])
@pytest.mark.parametrize("levels", [300, 900])
def test_deep_values_are_refused_by_name(name: str, levels: int) -> None:
    """JSON can be read deeper than it can be written: the message does without the value."""
    value: Any = 1
    for _ in range(levels):
        value = [value] if name != "messages" else {"a": value}
    with pytest.raises(InvalidRequest) as error:
        chat(**{name: value})
    assert error.value.param == name
    assert len(error.value.message) < 200


def test_messages_do_not_repeat_a_long_value() -> None:
    """What a client sent is shown by its beginning."""
    with pytest.raises(UnsupportedParameter) as error:
        chat(messages=[{"role": "user", "content": [{"type": "y" * 10_000}]}])
    assert len(error.value.message) < 200


def test_a_stop_has_an_end() -> None:
    """A matcher is made of it where all streams are made."""
    assert only(chat(stop=["x" * 4096])).stop == ("x" * 4096,)
    with pytest.raises(InvalidRequest, match="at most 4096 characters") as error:
        chat(stop=["x", "x" * 4097])
    assert error.value.param == "stop"


@pytest.mark.parametrize(("characters", "fits"), [(512, True), (513, False)])
def test_the_name_of_a_model_has_an_end(characters: int, fits: bool) -> None:
    """It is looked up, sent back in a header and logged."""
    name = "m" * characters
    if fits:
        assert model_of({"model": name}) == name
    else:
        with pytest.raises(InvalidRequest, match="at most 512 characters"):
            model_of({"model": name})


def test_zero_is_a_value() -> None:
    """0 is never taken for "left out"."""
    names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed")
    sampling = only(chat(**dict.fromkeys(names, 0), xtc_probability=0, xtc_threshold=0)).sampling
    assert sampling == SamplingParams(temperature=0.0, top_p=0.0, seed=0)


def test_all_sampling_fields_arrive() -> None:
    """Each sampling field lands under its own name."""
    fields: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": -0.5,
        "frequency_penalty": 2,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.1,
        "seed": -(2**63),
    }
    for parse in (chat, completion):
        sampling = only(parse(**fields, logit_bias={"7": -100, "3": 2.5, str(2**31 - 1): 1})).sampling
        assert sampling == SamplingParams(**fields, logit_bias=((3, 2.5), (7, -100.0), (2**31 - 1, 1.0)))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("logit_bias", {"9" * 5000: 1}, "token ids"),
        ("stop", ["a" * 4096] * 5, "at most 16384 characters together"),
    ],
)
def test_a_large_value_is_refused_with_its_bounds(name: str, value: Any, words: str) -> None:
    """The golden file of errors (`tests/http/body_errors.json`) has the small ones."""
    for parse in (chat, completion):
        with pytest.raises(InvalidRequest, match=words) as refused:
            parse(**{name: value})
        assert refused.value.param == name


@pytest.mark.parametrize(
    ("value", "stop"),
    [
        ("a", ("a",)), ([*"abcd"] * 16, (*"abcd",) * 16), ([], ()), (None, ()), ("", ()), (["a", ""], ("a",)),
    ],
)  # fmt: skip
def test_stop_is_a_text_or_a_list(value: Any, stop: tuple[str, ...]) -> None:
    """A text, up to 64 texts, or nothing; empty texts stop nowhere."""
    assert only(chat(stop=value)).stop == stop


@pytest.mark.parametrize(("shape", "parse"), [(ChatBody, chat), (CompletionBody, completion)])
def test_refused_fields_pass_at_neutral_values_only(shape: type[msgspec.Struct], parse: Any) -> None:
    """Null and the documented neutral values change nothing; any other value is refused by name."""
    plain = parse()
    for name, field in fields_of(shape).items():
        if field.here == "refused":
            for neutral in (None, *field.neutral):
                assert parse(**{name: neutral}) == plain
            with pytest.raises(UnsupportedParameter, match=f"^{name} is not supported") as refused:
                parse(**{name: ["something"]})
            assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"audio": {"voice": "x"}}, ["audio"]),
        ({"modalities": ["text", "audio"]}, ["modalities[1]"]),
        ({"prediction": {"type": "content", "content": "x"}}, ["prediction"]),
        ({"verbosity": "low"}, ["verbosity"]),
        ({"web_search_options": {}}, ["web_search_options"]),
        ({"tools": [{"type": "web_search"}]}, ["tools[0]"]),
    ],
)
def test_what_the_rest_of_a_request_can_do_without_is_left_out_by_name(
    fields: dict[str, Any], names: list[str]
) -> None:
    """The answer is the one of the body without it; where omissions are refused, the error names it."""
    assert chat(**fields) == chat()
    assert left_out(**fields) == names
    with pytest.raises(UnsupportedParameter) as refused:
        parse_chat({"model": "m", "messages": HI} | fields, NoiseFilter(), Omissions("m", rejects_fields=True))
    assert refused.value.param == names[0]


def test_an_answer_without_text_is_refused() -> None:
    """Sound alone is what this server cannot make."""
    with pytest.raises(UnsupportedParameter, match="modalities"):
        chat(modalities=["audio"])


@pytest.mark.parametrize(("name", "value"), [("best_of", 2), ("suffix", "x")])
def test_a_completion_field_that_would_change_the_answer_is_refused(name: str, value: Any) -> None:
    """Completions have two of their own."""
    with pytest.raises(UnsupportedParameter):
        completion(**{name: value})


def test_the_best_of_as_many_as_are_returned_are_all() -> None:
    """best_of that is no more than n asks for nothing more."""
    assert completion(best_of=3, n=3) == completion(n=3)


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"max_tokens": -1}, {}),
        ({"max_tokens": 0}, {}),
        ({"max_completion_tokens": -1, "max_tokens": 5}, {}),
        ({"max_completion_tokens": 6, "max_tokens": 5}, {"max_tokens": 6}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 40.0}, {"top_k": 40}),
        ({"stream_options": {"include_usage": True}}, {}),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, {"stream": True}),
        ({"messages": [HI[0] | {"name": ""}]}, {}),
        ({"messages": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]}, {}),
    ],
)
def test_values_that_stand_for_others(fields: dict[str, Any], same: dict[str, Any]) -> None:
    """What clients of other servers send is read as what they mean by it, and is no omission."""
    assert chat(**fields) == chat(**same)
    assert left_out(**fields) == []


def test_an_answer_may_go_on_to_its_bound() -> None:
    """ignore_eos is what benchmarks of vLLM send."""
    assert only(chat(ignore_eos=True)).sampling == SamplingParams(ignore_eos=True)


def test_habit_fields_are_accepted() -> None:
    """What SDKs and apps send by habit changes nothing and is not reported as ignored."""
    habits = {name: "x" for name, field in fields_of(ChatBody).items() if field.here == "accepted"}
    assert {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"} <= set(habits)
    assert chat(**habits) == chat()


def test_null_is_left_out_for_every_field_that_works() -> None:
    """Null means the default, but for the two fields that have none."""
    for name, field in {**fields_of(ChatBody), **fields_of(Sampling)}.items():
        if field.here == "done" and not field.is_required:
            assert chat(**{name: None}) == chat()
    with pytest.raises(InvalidRequest, match="messages is required"):
        chat(messages=None)


def test_unknown_fields_are_named() -> None:
    """Fields of other servers are ignored in the open, wherever they stand, each once."""
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "x": 1}], "y": 1}],
        "top_a": 1,
        "stream": True,
        "stream_options": {"z": 1},
    }
    assert left_out(**body) == ["top_a", "stream_options.z", "messages[0].y", "messages[0].content[0].x"]


def test_unknown_fields_may_be_refused_with_the_nearest_name() -> None:
    """With http.unknown_fields = "reject" a typo is told what it may have meant."""
    with pytest.raises(InvalidRequest, match="'temprature'; the nearest is temperature") as refused:
        parse_chat({"model": "m", "messages": HI, "temprature": 1}, NoiseFilter(), Omissions("m", rejects_fields=True))
    assert refused.value.param == "temprature"


def test_the_list_of_unknown_fields_is_bounded() -> None:
    """A body of ten thousand unknown fields makes no header of ten thousand names."""
    assert len(left_out(**{f"x{number}": 1 for number in range(10_000)})) == 20


def test_roles_and_parts_become_what_a_template_wants() -> None:
    """The role developer is system, parts are joined as they are, names and reasoning are kept."""
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}], "name": "Ann"},
        {"role": "assistant", "content": "c", "reasoning_content": "r", "refusal": None, "tool_calls": []},
        {"role": "user", "content": ""},
    ]
    assert only(chat(messages=messages)).prompt == ChatPrompt(
        (
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "a b", "name": "Ann"},
            {"role": "assistant", "content": "c", "reasoning_content": "r"},
            {"role": "user", "content": ""},
        )
    )


CALL = {"id": "call_f", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    ("message", "expected", "names"),
    [
        ({"role": "tool", "tool_call_id": "1", "content": None}, {"tool_call_id": "1", "content": ""}, []),
        ({"role": "tool", "tool_call_id": "1", "content": []}, {"tool_call_id": "1", "content": ""}, []),
        ({"role": "assistant", "content": None}, {"content": ""}, []),
        ({"role": "assistant"}, {"content": ""}, []),
        ({"role": "assistant", "content": None, "refusal": "no"}, {"content": "no"}, []),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, {"content": "no"}, []),
        ({"role": "assistant", "content": "a", "reasoning": "r"}, {"content": "a", "reasoning_content": "r"}, []),
        (
            {"role": "assistant", "content": "a", "annotations": [{"type": "url_citation"}], "audio": {"id": "x"}},
            {"content": "a"},
            ["messages[0].annotations", "messages[0].audio"],
        ),
        ({"role": "assistant", "tool_calls": [CALL]}, {"content": "", "tool_calls": [CALL]}, []),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a":1}'}},
            {"content": "", "tool_calls": [CALL]},
            [],
        ),
        (
            {"role": "function", "name": "f", "content": "x"},
            {"role": "tool", "name": "f", "tool_call_id": "call_f", "content": "x"},
            [],
        ),
        (
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "see "},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                    {"type": "file", "file": {"file_id": "x"}},
                ],
            },
            {
                "content": "see [image omitted: m reads text only][audio omitted: m reads text only]"
                "[file omitted: m reads text only]"
            },
            ["messages[0].content[1]", "messages[0].content[2]", "messages[0].content[3]"],
        ),
    ],
)
def test_history_of_other_servers_is_taken(message: Any, expected: dict[str, Any], names: list[str]) -> None:
    """Nothing that another server has put into a conversation ends it; what is lost is named."""
    prompt = only(chat(messages=[message])).prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages == ({"role": message["role"]} | expected,)
    assert left_out(messages=[message]) == names


def test_media_are_refused_where_the_setting_says_so() -> None:
    """http.media = "reject" names the part."""
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    with pytest.raises(UnsupportedParameter, match="holds an image") as refused:
        parse_chat({"model": "m", "messages": [message]}, NoiseFilter(), Omissions("m", rejects_media=True))
    assert refused.value.param == "messages[0].content[0]"


def test_max_completion_tokens_is_max_tokens() -> None:
    """Either name works; of two the newer one, which proxies leave as it is."""
    assert only(chat(max_tokens=5)).max_tokens == 5
    assert only(chat(max_completion_tokens=5)).max_tokens == 5
    assert only(chat(max_tokens=5, max_completion_tokens=6)).max_tokens == 6


def test_usage_in_a_stream_is_asked_for() -> None:
    """stream_options works in a stream; a whole answer has its usage anyway."""
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage
    assert not chat(stream=True, stream_options={"include_usage": False, "include_obfuscation": False}).include_usage
    assert not chat(stream=True, stream_options={}).include_usage
    assert not chat(stream_options={"include_usage": True}).include_usage
    with pytest.raises(InvalidRequest, match=r"stream_options\.include_usage must be true or false"):
        chat(stream=True, stream_options={"include_usage": 1})


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("hi", [TextPrompt("hi")]),
        (["a", "b"], [TextPrompt("a"), TextPrompt("b")]),
        ([1, 0], [TokenPrompt((1, 0))]),
        ([[1], [2, 3]], [TokenPrompt((1,)), TokenPrompt((2, 3))]),
    ],
)
def test_the_four_shapes_of_a_completion_prompt(prompt: Any, prompts: list[Any]) -> None:
    """A text, texts, tokens, lists of tokens: one generation each."""
    assert [request.prompt for request in completion(prompt=prompt).requests] == prompts


def test_prompts_have_an_end() -> None:
    """Each is an answer."""
    with pytest.raises(InvalidRequest, match="prompt holds 129 prompts"):
        completion(prompt=["a"] * 129)


def test_a_completion_is_16_tokens_when_nothing_is_said() -> None:
    """That is OpenAI's documented default of /v1/completions."""
    assert (only(completion()).max_tokens, only(completion()).default_max_tokens) == (None, 16)
    with pytest.raises(InvalidRequest, match="prompt is required"):
        completion(prompt=None)


def test_nothing_at_all_is_asked_for_by_mistake_only() -> None:
    """max_tokens 0 makes sense where the prompt is echoed, and nowhere else."""
    with pytest.raises(InvalidRequest, match="unless echo is true"):
        completion(max_tokens=0)
    assert completion(max_tokens=0, echo=True).echoes_only


def test_logprobs_are_a_switch_and_a_number_for_chat_and_a_number_for_completions() -> None:
    """0 alternatives are logprobs too; alternatives without logprobs are a mistake."""
    assert only(chat()).logprobs is None
    assert only(chat(logprobs=False, top_logprobs=0)).logprobs is None
    assert only(chat(logprobs=True)).logprobs == 0
    assert only(chat(logprobs=True, top_logprobs=20)).logprobs == 20
    assert only(completion(logprobs=0)).logprobs == 0
    with pytest.raises(InvalidRequest, match="only when logprobs is true"):
        chat(top_logprobs=1)
    with pytest.raises(InvalidRequest, match="must be"):
        chat(logprobs=1)


@pytest.mark.parametrize("prompts", [["a"] * 2, ["a"] * 128])
def test_answers_to_one_request_are_bounded(prompts: list[str]) -> None:
    """Prompts times n."""
    with pytest.raises(InvalidRequest, match="128 answers"):
        completion(prompt=prompts, n=100)


def test_template_variables_are_passed_on_but_not_what_is_rendered() -> None:
    """A client sets variables; the messages and the template itself are not variables."""
    request = only(chat(chat_template_kwargs={"enable_thinking": False, "budget": 3}))
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.template_kwargs == {"enable_thinking": False, "budget": 3}
    for name in ("chat_template", "tokenize", "messages", "a b"):
        with pytest.raises(InvalidRequest, match="no variable of a template"):
            chat(chat_template_kwargs={name: 1})


def test_calls_and_results_become_what_a_template_wants() -> None:
    """Arguments are objects, a message of calls alone has no text; what is no object stands in one."""

    def call(arguments: str) -> dict[str, Any]:
        return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}

    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call('{"a": 1}'), call("[oops"), call("")]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "4"}]},
    ]
    prompt = only(chat(messages=messages)).prompt
    assert isinstance(prompt, ChatPrompt)
    said, result = prompt.messages
    assert said["content"] == ""
    assert [item["function"]["arguments"] for item in said["tool_calls"]] == [{"a": 1}, {"INVALID_JSON": "[oops"}, {}]
    assert result == {"role": "tool", "tool_call_id": "c", "content": "4"}


def test_a_schema_too_deep_to_write_is_refused() -> None:
    """JSON can be read deeper than it can be written."""
    schema: dict[str, Any] = {}
    for _ in range(400):
        schema = {"not": schema}
    with pytest.raises(InvalidRequest, match="too deep") as error:
        chat(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}})
    assert error.value.param == "response_format.json_schema.schema"
