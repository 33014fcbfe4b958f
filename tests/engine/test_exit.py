"""Processes that end around the device thread: no abort, whatever it was doing; and what a start imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.bench import WriteModel
from tests.support.tiny_encoder import write_tiny_encoder

PREAMBLE = """
import asyncio, sys
from pathlib import Path
from mlxd.engine.base import *
from mlxd.engine.device import Device
from mlxd.engine.vector import EmbeddingRequest, Pooling

async def streaming(device):
    engine = await device.load(LoadSpec("tiny", Path(sys.argv[1]), None, 10**8), lambda done, total: None)
    tokens = asyncio.Event()
    prompt = PreparedPrompt((1, 2, 3), 1500)
    engine.submit(
        Submit(1, prompt, SamplingParams(), (), 2000),
        lambda event: tokens.set() if isinstance(event, Delta) else None,
    )
    await tokens.wait()
    return engine

def new_device():
    return Device(asyncio.get_running_loop(), BackendLimits(10**9, 10**8), SchedulingParams(2048, 30))
"""
ENDS = {
    "closed": """
async def main():
    device = new_device()
    await streaming(device)
    await device.close()
""",
    "forgotten": """
async def main():
    await streaming(new_device())
""",
    "exception": """
async def main():
    engine = await streaming(new_device())
    raise SystemExit(3)
""",
    "encoder": """
async def main():
    device = new_device()
    spec = LoadSpec("bert", Path(sys.argv[2]), None, 10**8, is_encoder=True, pooling=Pooling.MEAN)
    engine = await device.load(spec, lambda done, total: None)
    inputs = await engine.prepare_inputs(EmbeddingRequest(("a text",) * 2000))
    engine.embed(1, inputs, inputs.final_tokens, lambda event: None)
    await streaming(device)
""",
    "folder hangs": """
async def main():
    import threading
    device = new_device()
    await streaming(device)
    from mlxd.engine import source
    hangs = threading.Event()
    source.read_model_files = lambda spec: (hangs.set(), threading.Event().wait())
    load = asyncio.ensure_future(device.load(LoadSpec("b", Path(sys.argv[1]), None, 0), lambda done, total: None))
    await asyncio.to_thread(hangs.wait)
    load.cancel()
    await device.close()
""",
    "import failed": """
async def main():
    import logging
    from mlxd.protocol.errors import LoadFailed
    logging.disable()
    sys.modules["llguidance"] = None
    device = new_device()
    try:
        await device.load(LoadSpec("tiny", Path(sys.argv[1]), None, 10**8), lambda done, total: None)
    except LoadFailed:
        await device.close()
""",
    "never used": """
async def main():
    device = new_device()
    await device.memory()
    assert not {"mlx", "mlx.core", "mlx_lm", "transformers"} & set(sys.modules), "imported too early"
""",
    "import in progress": """
async def main():
    new_device().warm_up(lambda: None)
""",
}


@pytest.mark.parametrize("end", ENDS)
def test_process_ends_in_order(write_model: WriteModel, tmp_path: Path, end: str) -> None:
    """The exit status is the program's own, and nothing is on stderr."""
    encoder = write_tiny_encoder(tmp_path / "bert", "bert") if end == "encoder" else tmp_path
    program = PREAMBLE + ENDS[end] + "\nasyncio.run(main())\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(write_model()), str(encoder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3 if end == "exception" else 0, "", "")
