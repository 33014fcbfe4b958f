"""Describe each wire protocol from outside: keys, content, usage, ends and errors. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Mapping

from mlxd.cloud.protocol.anthropic import Anthropic
from mlxd.cloud.protocol.base import Protocol
from mlxd.cloud.protocol.openai import OpenAI

PROTOCOLS: Mapping[str, Protocol] = {"openai": OpenAI(), "anthropic": Anthropic()}

__all__ = ["PROTOCOLS", "Protocol"]
