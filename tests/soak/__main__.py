"""`python -m tests.soak`: random traffic and changes and bad neighbors on one daemon; exit 1 when anything is wrong.

Holds that each answer is the one that the model gave alone beforehand, that every request ends, that none is answered
500, that `/ready` says what `status` says, that at the end nothing is leased, queued or reserved and `status --check`
finds nothing, and that memory does not grow once it is warm. Whatever hangs is named, and there is a summary in any
case, also after Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlxd.protocol.errors import ControlError
from tests.soak.intruder import prepare
from tests.soak.load import Load
from tests.soak.neighbor import Neighbors
from tests.soak.quiet import unload_all
from tests.soak.steering import CONFIG
from tests.soak.traffic import learn_all, make_cases
from tests.support.daemon import RealDaemon
from tests.support.tiny_model import write_tiny_model
from tests.support.upstream import upstream

MODELS = ["a", "b", "c"]
WORKERS = 12
# In which a process writes its stacks when it is told to.
_STACKS_S = 0.5


def main() -> int:
    """Run it and print the summary."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of all choices (default: another one each time; it is printed)")
    parser.add_argument("--workers", type=int, default=WORKERS, help="requests at a time (default: %(default)s)")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"soak of {arguments.minutes:g} minutes, {arguments.workers} workers, --seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mlxd-soak-") as folder:
        soak = Soak(Path(folder) / "home", arguments.minutes * 60, seed, arguments.workers)
        try:
            asyncio.run(soak.run())
        finally:
            failures = soak.summarize()
    return 1 if failures else 0


class Soak:
    """One daemon and all that is done to it."""

    def __init__(self, home: Path, seconds: float, seed: int, workers: int) -> None:
        """Write the models and the settings; nothing is started yet."""
        self._seconds = seconds
        self._seed = seed
        self._workers = workers
        self._faults = home.parent / "faults"
        self._daemon = RealDaemon(home, environment=prepare(self._faults))
        self._daemon.configure(CONFIG)
        for number, name in enumerate(MODELS):
            write_tiny_model(home / "models" / name, seed=number)
        self._failures: list[str] = []
        self._begun_s = time.monotonic()
        self._phase = "nothing has begun"
        self._load: Load | None = None
        self._stacks = ""  # of a daemon that did not come to its end

    async def run(self) -> None:
        """Run the daemon for so long, and find what is wrong; a signal ends it early, and is wrong too."""
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            self._enter("the daemon starts")
            await asyncio.to_thread(self._daemon.start)
            async with upstream() as far:
                await self._put_under_load(far.url)
            await asyncio.to_thread(self._end_daemon)
        except asyncio.CancelledError:
            self._fail(f"it was stopped while {self._phase}")
        except (OSError, RuntimeError, TimeoutError, ControlError, subprocess.TimeoutExpired) as error:
            self._fail(f"{error!r} while {self._phase}")
        finally:
            process = self._daemon.process
            if process is not None and process.poll() is None:
                self._stacks = self._read_stacks(process)
                self._daemon.kill()

    def summarize(self) -> list[str]:
        """Print what happened, and return what is wrong."""
        failures = [*self._failures]
        if self._load is not None:
            failures += self._load.failures
            print("\n".join(self._load.summary()))
        log = self._daemon.log()
        place = log.find("Traceback")
        if place >= 0:
            failures.append(f"the daemon's log has a traceback: {log[max(0, place - 500) : place + 3000]}")
        for failure in failures:
            print(f"WRONG: {failure}")
        if self._stacks:
            print(f"the daemon's threads:\n{self._stacks}")
        print("nothing is wrong" if not failures else f"{len(failures)} things are wrong")
        return failures

    async def _put_under_load(self, upstream_url: str) -> None:
        url = await asyncio.to_thread(lambda: self._daemon.base_url)
        self._enter("the answers are learnt")
        known = await learn_all(url, make_cases(MODELS, random.Random(f"{self._seed} cases")))
        neighbors = Neighbors(url, self._daemon.home, self._faults, MODELS, self._seed)
        load = self._load = Load(self._daemon, url, upstream_url, known, neighbors, self._seed)
        self._enter(f"{len(known)} questions are asked, with changes and bad neighbors")
        self._failures += await load.run(self._seconds, self._workers)
        self._enter("everything is to become quiet")
        self._failures += await asyncio.to_thread(load.calm)
        self._enter("each question is asked once more")
        await load.traffic.ask_all()

    def _end_daemon(self) -> None:
        """Unload everything, have the daemon checked, and end it."""
        self._enter("all models are unloaded")
        self._failures += unload_all(self._daemon.home / "mlxd.sock", MODELS)
        self._enter("status --check looks for problems")
        checked = self._daemon.mlxctl("status", "--check", check=False)
        if checked.returncode != 0:
            self._failures.append(f"status --check at the end: {checked.stdout}{checked.stderr}")
        self._enter("the daemon ends")
        status = self._daemon.terminate()
        if status != 0:
            self._failures.append(f"the daemon ended with {status}")

    def _enter(self, phase: str) -> None:
        self._phase = phase
        print(f"{time.monotonic() - self._begun_s:.0f} s: {phase}", flush=True)

    def _fail(self, words: str) -> None:
        doing = [] if self._load is None else self._load.doing
        self._failures.append("; ".join([words, *doing]))

    def _read_stacks(self, process: subprocess.Popen[bytes]) -> str:
        """Return where each thread of the daemon is: what hangs there hangs still."""
        known = len(self._daemon.log())
        process.send_signal(signal.SIGUSR1)
        time.sleep(_STACKS_S)
        return self._daemon.log()[known:]


if __name__ == "__main__":
    sys.exit(main())
