"""The map of operation → handler, made from what `handles` marks and from the resources.

A test holds it against the table of operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import FunctionType, MappingProxyType

from mlxd.control import (
    apikey,
    audit,
    cache,
    cloud,
    key,
    model,
    model_settings,
    pool,
    preload,
    process,
    provider,
    report,
    request,
    rule,
    setting,
    spending,
)
from mlxd.control.context import Handler
from mlxd.control.provider import PROVIDERS
from mlxd.control.resource import Entries
from mlxd.control.rule import RULES
from mlxd.control.spending import PRICES
from mlxd.protocol.resource import RESOURCES

_MODULES = (
    apikey, audit, cache, cloud, key, model, model_settings, pool, preload,
    process, provider, report, request, rule, setting, spending,
)  # fmt: skip
_ENTRIES = {entries.resource.noun: entries for entries in (PROVIDERS, RULES, PRICES)}


def _find_handlers() -> Iterator[tuple[str, Handler]]:
    for module in _MODULES:
        for value in vars(module).values():
            if isinstance(value, FunctionType) and hasattr(value, "operation"):
                yield value.operation, value
    for noun, resource in RESOURCES.items():
        yield from (_ENTRIES.get(noun) or Entries(resource)).handlers.items()


HANDLERS: Mapping[str, Handler] = MappingProxyType(dict(_find_handlers()))
