"""The sampling fields that all routes that generate have, OpenAI's and the local extras."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxd.engine.base import SamplingParams
from mlxd.http import field
from mlxd.http.table import Table, Works

_MAX_TOP_K = 2**31 - 1

SAMPLING: Table = {
    "temperature": Works(field.number(0, 100)),
    "top_p": Works(field.number(0, 1)),
    "top_k": Works(field.standing_for(field.integer(0, _MAX_TOP_K), {-1: 0}), "-1 is 0: off"),
    "min_p": Works(field.number(0, 1)),
    "repetition_penalty": Works(field.number(0, 10, above_minimum=True)),
    "presence_penalty": Works(field.number(-2, 2)),
    "frequency_penalty": Works(field.number(-2, 2)),
    "xtc_probability": Works(field.number(0, 1)),
    "xtc_threshold": Works(field.number(0, 0.5)),
    "logit_bias": Works(field.logit_bias),
    "ignore_eos": Works(field.boolean),
    "seed": Works(field.integer(-(2**63), 2**63 - 1)),
}


def sampling_params(values: Mapping[str, Any]) -> SamplingParams:
    """Return the params of a body whose fields have been checked; what is left out is neutral."""
    return SamplingParams(**{name: values[name] for name in SAMPLING if name in values})
