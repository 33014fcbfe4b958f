"""The processes that render chat templates for the tests of one pytest process: one is started and used by all."""

from __future__ import annotations

import atexit

from mlxd.engine.process import Processes

PROCESSES = Processes()
atexit.register(PROCESSES.close)
