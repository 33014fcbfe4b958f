"""LangChain's `ChatOpenAI` with tools, against MLX through HTTP."""

from __future__ import annotations

import functools
import operator
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

from tests.support.served_models import ServeModels

pytestmark = pytest.mark.parametrize("serve_models", ["device"], indirect=True)


@tool
def weather(city: str, days: int) -> str:
    """Tell the weather of a city."""
    return f"{city} {days}: sun"


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=8)
    age: int = Field(ge=0, le=150)


@asynccontextmanager
async def chat(serve_models: ServeModels, model: str, **options: Any) -> AsyncIterator[ChatOpenAI]:
    """Serve the tiny models and return a chat with one of them."""
    async with serve_models() as served:
        url = f"{served.url}/v1"
        yield ChatOpenAI(model=model, base_url=url, api_key="unused", max_retries=0, seed=2, **options)  # type: ignore[arg-type]


async def test_a_tool_is_called_and_its_result_goes_back(serve_models: ServeModels) -> None:
    """`bind_tools` with a choice makes a call, the tool runs on it, and the second turn is an answer."""
    async with chat(serve_models, "caller", max_tokens=300) as caller:
        bound = caller.bind_tools([weather], tool_choice="weather", strict=True, parallel_tool_calls=False)
        asked = HumanMessage("hi")
        answer = await bound.ainvoke([asked])
        (call,) = answer.tool_calls
        result = await weather.ainvoke(call)
        again = await caller.bind_tools([weather]).ainvoke([asked, answer, result], max_tokens=5)

    assert call["name"] == "weather"
    assert isinstance(result, ToolMessage)
    assert result.content == f"{call['args']['city']} {call['args']['days']}: sun"
    assert isinstance(again, AIMessage)
    assert answer.usage_metadata is not None


async def test_chunks_of_a_stream_add_up_to_the_whole_answer(serve_models: ServeModels) -> None:
    """The same call, and the same usage, whether streamed or not."""
    async with chat(serve_models, "caller", max_tokens=300, stream_usage=True) as caller:
        bound = caller.bind_tools([weather], tool_choice="required", strict=True, parallel_tool_calls=False)
        whole = await bound.ainvoke("hi")
        chunks = [chunk async for chunk in bound.astream("hi")]
    added: Any = functools.reduce(operator.add, chunks)

    assert isinstance(whole, AIMessage)
    assert isinstance(added, AIMessage)
    assert [(call["name"], call["args"]) for call in added.tool_calls] == [
        (call["name"], call["args"]) for call in whole.tool_calls
    ]
    assert added.usage_metadata is not None
    assert whole.usage_metadata is not None
    assert added.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


async def test_an_answer_becomes_a_pydantic_model(serve_models: ServeModels) -> None:
    """`with_structured_output` in both of its ways: a JSON schema, and a call of a function."""
    async with chat(serve_models, "caller", max_tokens=300) as caller:
        people = [
            await caller.with_structured_output(Person, method=method).ainvoke("hi")
            for method in ("json_schema", "function_calling")
        ]

    assert [type(person) for person in people] == [Person, Person]
