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
    process,
    provider,
    report,
    request,
    rule,
    setting,
)
from mlxd.control.context import Handler
from mlxd.control.resource import Entries
from mlxd.protocol.resource import RESOURCES

_MODULES = (
    apikey, audit, cache, cloud, key, model, model_settings,
    pool, process, provider, report, request, rule, setting,
)  # fmt: skip


def _find_handlers() -> Iterator[tuple[str, Handler]]:
    members = [member for module in _MODULES for member in vars(module).values()]
    written = {member.resource.noun: member for member in members if isinstance(member, Entries)}
    for noun, resource in RESOURCES.items():
        yield from (written.get(noun) or Entries(resource)).handlers.items()
    for member in members:
        if isinstance(member, FunctionType) and hasattr(member, "operation"):
            yield member.operation, member


HANDLERS: Mapping[str, Handler] = MappingProxyType(dict(_find_handlers()))
