"""The request log: what became of each request, and who changed what, in `audit.db`. Owns that file and its thread.

Nothing waits for it: rows go into a bounded queue, one thread writes them, and what does not fit is counted. Holds no
text of prompts or answers. Must not import aiohttp, the pool or the cloud: others tell it in plain data.
"""

from __future__ import annotations

from mlxd.audit.log import AuditLog
from mlxd.audit.query import Filter
from mlxd.audit.record import ChangeRecord, RequestRecord, RequestStatus

__all__ = ["AuditLog", "ChangeRecord", "Filter", "RequestRecord", "RequestStatus"]
