"""What `[models."ID"]` does to requests: aliases, default sampling params, adapters as models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mlxd.engine.base import GenerationRequest, SamplingParams
from mlxd.engine.device import Device
from mlxd.http.dispatch import filled
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.http.sampling import Sampling
from mlxd.http.schema import read
from mlxd.openai import schema
from mlxd.protocol.errors import InvalidRequest
from mlxd.protocol.settings import MOST_TOKENS, SAMPLING_NAMES, Row
from mlxd.protocol.table import rows
from tests.support.adapter import write_adapter
from tests.support.http_server import Served, settings_of
from tests.support.served_models import ServeModels

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "seed": 1}


def parsed(model: Mapping[str, Any], **body: Any) -> GenerationRequest:
    """Return what a chat body becomes under a model's settings."""
    defaults = settings_of({"models": {"m": dict(model)}}).models["m"]
    whole = {"model": "m", "messages": CHAT["messages"], **body}
    return schema.parse_chat(filled(whole, defaults), NoiseFilter(), Omissions("m", rejects_fields=True)).requests[0]


def test_a_default_holds_where_the_request_is_silent() -> None:
    """The request's own value wins, 0 included; null is silence."""
    model = {"temperature": 0.3, "top_p": 0, "top_k": 7, "presence_penalty": -1}
    assert parsed(model).sampling == SamplingParams(temperature=0.3, top_p=0, top_k=7, presence_penalty=-1)
    assert parsed(model, temperature=0, top_k=0).sampling == SamplingParams(top_p=0, temperature=0, presence_penalty=-1)
    assert parsed(model, temperature=None).sampling.temperature == 0.3
    assert parsed({}).sampling == SamplingParams()


def test_every_sampling_row_reaches_the_sampler() -> None:
    """Each name of the table is one of `SamplingParams`, and its value arrives."""
    values = {"top_k": 3, **{name: 0.25 for name in SAMPLING_NAMES if name != "top_k"}}
    sampling = parsed(values).sampling
    assert {name: getattr(sampling, name) for name in SAMPLING_NAMES} == values
    assert {field.name for field in dataclasses.fields(SamplingParams)} - set(SAMPLING_NAMES) == {
        "logit_bias",
        "seed",
        "ignore_eos",
    }


def _row(name: str) -> Row:
    return next(row for path, row in rows() if path == ("models", "*", name))


@pytest.mark.parametrize("name", [*SAMPLING_NAMES, "max_tokens"])
def test_a_setting_has_the_bounds_of_its_field(name: str) -> None:
    """What a request may say, a default may say, and nothing else; but for numbers that stand for "none"."""
    shape = Sampling if name in SAMPLING_NAMES else schema.ChatBody
    rest = {} if name in SAMPLING_NAMES else {"model": "m", "messages": CHAT["messages"]}
    kind, usable_bytes = _row(name).kind, 10**9
    stand_ins = {"top_k": {-1}, "max_tokens": {-1, 0}}.get(name, set())
    for value in (-3, -2, -1, 0, 0.25, 0.5, 1, 2, 3, 10, 11, MOST_TOKENS, MOST_TOKENS + 1, True, "x"):
        if type(value) is int and value in stand_ins:
            continue
        may_be_asked = _is_accepted(partial(read, shape, {**rest, name: value}, Omissions("m")))
        assert may_be_asked == _is_accepted(partial(kind.parse, value, usable_bytes)), (name, value)


def _is_accepted(check: Callable[[], object]) -> bool:
    try:
        check()
    except (ValueError, InvalidRequest):
        return False
    return True


async def test_default_max_tokens_is_cut_to_the_room(serve_models: ServeModels) -> None:
    """A long prompt makes it smaller, as it does a request's own value, which wins."""
    async with serve_models(models={"tiny": {"max_tokens": 20, "context_length": 60}}) as served:

        async def made(**body: Any) -> tuple[int, int]:
            """Return the tokens of prompt and answer."""
            _, _, raw = await served.post("/v1/completions", {"model": "tiny", "temperature": 0, **body})
            usage = json.loads(raw)["usage"]
            return usage["prompt_tokens"], usage["completion_tokens"]

        assert await made(prompt="a" * 10) == (10, 20)
        assert await made(prompt="a" * 50) == (50, 10)
        assert await made(prompt="a" * 10, max_tokens=3) == (10, 3)
        assert await made(prompt="a" * 50, max_tokens=20) == (50, 10)


async def _answer(served: Served, model: str, **body: Any) -> tuple[dict[str, Any], str]:
    """Return the body of a chat's answer and the model that gave it."""
    status, headers, raw = await served.post("/v1/chat/completions", {"model": model, **CHAT, **body})
    assert status == 200, raw
    return json.loads(raw), headers["x-mlxd-model"]


async def test_an_alias_is_served_by_its_model(serve_models: ServeModels) -> None:
    """The answer has the name that was asked for, the header the model that gave it; both say the same."""
    models = {"tiny": {"aliases": ["gpt-4o", "org/small"]}, "org/other": {"max_tokens": 3, "temperature": 0}}
    async with serve_models(models=models) as served:
        served.context.catalog.set_aliases({"gpt-4o": "tiny", "org/small": "tiny"})
        named, by = await _answer(served, "gpt-4o", max_tokens=8)
        assert (named["model"], by) == ("gpt-4o", "tiny")
        direct, _ = await _answer(served, "tiny", max_tokens=8)
        assert named["choices"] == direct["choices"]
        other, _ = await _answer(served, "org/other", seed=None)
        again, _ = await _answer(served, "org/other", seed=5)
        assert other["usage"]["completion_tokens"] == 3
        assert again["usage"]["completion_tokens"] == 3
        _, _, raw = await served.get("/v1/models")
        listed = {model["id"]: model for model in json.loads(raw)["data"]}
        assert listed["gpt-4o"]["alias_of"] == "tiny"
        assert {"gpt-4o", "org/small", "org/other", "tiny"} <= set(listed)
        status, _, raw = await served.get("/v1/models/org/small")
        assert (status, json.loads(raw)["alias_of"]) == (200, "tiny")
        status, _, raw = await served.get("/v1/models/nothing")
        assert status == 404


async def test_an_adapter_is_a_model(serve_models: ServeModels, models_root: Path, tmp_path: Path) -> None:
    """It is listed with its base, and answers beside it."""
    write_adapter(tmp_path / "style", "tiny", seed=4)
    async with serve_models() as served:
        catalog = served.context.catalog
        catalog.adopt(catalog.prepare([models_root], {"tiny+style": tmp_path / "style"}))
        base, _ = await _answer(served, "tiny", max_tokens=20, temperature=0)
        adapted, by = await _answer(served, "tiny+style", max_tokens=20, temperature=0)
        assert by == "tiny+style"
        assert adapted["usage"] == base["usage"]
        if isinstance(served.context.pool._backend, Device):  # the fake's text depends on the prompt only
            assert adapted["choices"] != base["choices"]
        _, _, raw = await served.get("/v1/models")
        listed = {model["id"]: model for model in json.loads(raw)["data"]}
        assert (listed["tiny+style"]["adapter_of"], listed["tiny+style"]["state"]) == ("tiny", "ready")
