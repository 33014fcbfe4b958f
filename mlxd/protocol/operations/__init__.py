"""THE table of control operations: what a `req` frame may ask for, with which params.

The rows stand in one file per noun, `row.py` says what a row is. The server takes its checks from here, and mlxctl its
names. A result is a plain map. `force` passes a check that says so; `idem` and `if_gen` are keys of the frame, for
every operation that changes something, `dry` and `persist` for those that change settings. An operation that goes on
after its reply puts the id of what goes on into the reply's `op`, for `op.wait`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from mlxd.protocol.errors import NotFound
from mlxd.protocol.operations import (
    apikey,
    audit,
    cache,
    cloud,
    daemon,
    key,
    model,
    op,
    pool,
    queue,
    request,
    rule,
    settings,
)
from mlxd.protocol.operations.row import Operation, Param, ParamType, check_params

__all__ = ["OPERATIONS", "Operation", "Param", "ParamType", "check_params", "find_operation"]

_NOUNS = (daemon, pool, queue, settings, model, cache, cloud, rule, key, apikey, op, request, audit)

OPERATIONS: Mapping[str, Operation] = MappingProxyType({row.name: row for noun in _NOUNS for row in noun.TABLE})


def find_operation(name: object) -> Operation:
    """Return the operation called *name*.

    Raises:
        NotFound: there is none; the message names the nearest.
    """
    operation = OPERATIONS.get(name) if isinstance(name, str) else None
    if operation is not None:
        return operation
    near = difflib.get_close_matches(str(name), OPERATIONS, n=1)
    msg = f"there is no operation {name!r}" + (f"; the nearest is {near[0]!r}" if near else "")
    raise NotFound(msg, hint="a newer mlxctl than the running mlxd? mlxctl restart")
