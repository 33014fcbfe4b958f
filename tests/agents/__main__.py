"""Coding agents from npm against a daemon with a tiny model: `python -m tests.agents`, or `make test-agents`.

Each runs in its non-interactive mode, in a network without a way out. Every request must be answered, and what a prompt
shares with an earlier one must have been cached.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.agents import namespace
from tests.agents.model import write_agent_model
from tests.agents.program import ALIAS, MODEL, PROGRAMS, Program, Step, write_work
from tests.agents.proxy import Proxy, proxying
from tests.agents.telling_daemon import read_prompts
from tests.agents.verdict import Verdict, judge
from tests.support.daemon import RealDaemon, running_daemon
from tests.support.node import installed, node
from tests.support.templates import TEMPLATES

HERE = Path(__file__).parent
CONFIG = f"""
[http]
port = 0
[pool]
memory = "6GB"
[catalog]
paths = ["models"]
[models.{MODEL}]
aliases = ["{ALIAS}"]
"""
_STEP_S = 300.0
_SHOWN_CHARACTERS = 400
_DAEMON = "tests.agents.telling_daemon"


def main() -> int:
    """Install, enter the namespace, and run; the exit status is 1 when anything is wrong."""
    options = _parse()
    _, npm = node()
    packages = installed(npm, HERE / "package.json")
    if not options.inside:
        if (entrance := namespace.entrance()) is not None:
            command = [*entrance, sys.executable, "-m", "tests.agents", "--inside", *sys.argv[1:]]
            return subprocess.run(command, check=False).returncode
        print("This machine has no network namespaces: the programs could reach other machines.", flush=True)
    else:
        namespace.enter()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="mlxd-agents-") as folder:
        verdicts, faults = asyncio.run(_run(Path(folder), packages, options))
    print(_table(verdicts))
    faults += [f"{name}: {fault}" for name, verdict in verdicts.items() for fault in verdict.faults]
    for fault in dict.fromkeys(faults):
        print(f"error: {fault}")
    return int(bool(faults))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.agents", description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="*", help="words of their names [default: all]")
    parser.add_argument("--together", action="store_true", help="run them side by side")
    parser.add_argument("--restart", action="store_true", help="restart the daemon after each step")
    parser.add_argument("--template", choices=[*TEMPLATES], help="another chat template, by what it behaves like")
    parser.add_argument("--keep", type=Path, help="folder for what was sent and answered")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


async def _run(folder: Path, packages: Path, options: argparse.Namespace) -> tuple[dict[str, Verdict], list[str]]:
    """Run the sessions; return what came of each program's requests, and what else went wrong."""
    chosen = [each for each in PROGRAMS if not options.programs or any(word in each.name for word in options.programs)]
    home = folder / "home"
    write_agent_model(home / "models" / MODEL, template=options.template)
    verdicts = {program.name: Verdict() for program in chosen}
    faults: list[str] = []
    with running_daemon(home, CONFIG, module=_DAEMON) as daemon:
        async with AsyncExitStack() as stack:
            sessions = [
                Session(program, packages, folder, await stack.enter_async_context(proxying(_url(daemon))))
                for program in chosen
            ]
            for group in [sessions] if options.together else [[session] for session in sessions]:
                for number in range(max(len(session.program.steps) for session in group)):
                    if options.restart and number:
                        await asyncio.to_thread(_restart, daemon)
                        for session in sessions:
                            session.proxy.upstream = _url(daemon)
                            session.proxy.new_daemon()
                    done = await asyncio.gather(*(session.run(number) for session in group))
                    faults += [fault for each in done for fault in each]
            rows, prompts = _rows(daemon), read_prompts(home)
            for session in sessions:
                verdicts[session.program.name] = judge(session.proxy.seen, rows, prompts)
                if options.keep is not None:
                    session.keep(options.keep)
    return verdicts, faults


class Session:
    """One program's session, behind a proxy of its own."""

    def __init__(self, program: Program, packages: Path, folder: Path, proxy: Proxy) -> None:
        """Take the folder that its home and its working directory are made in."""
        self.program = program
        self.proxy = proxy
        name = program.name.replace(" ", "-")
        self._work = write_work(folder / f"{name}-work")
        self._binary = program.path(packages)
        self._environment = program.environment(folder / f"{name}-home", proxy.url)

    async def run(self, number: int) -> list[str]:
        """Run the step of that number, if there is one; print a line, and return what went wrong."""
        if number >= len(self.program.steps):
            return []
        step, began, first = self.program.steps[number], time.monotonic(), len(self.proxy.seen)
        self.proxy.begin(step.name, self.program.calls(self._work), step.calls)
        process = await asyncio.create_subprocess_exec(
            str(self._binary),
            *step.arguments,
            env=self._environment,
            cwd=self._work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), _STEP_S)
        except TimeoutError:
            process.kill()
            output, _ = await process.communicate()
        faults = self._faults(step, process.returncode, output.decode(errors="replace"))
        statuses = " ".join(str(exchange.status) for exchange in self.proxy.seen[first:])
        took = f"{time.monotonic() - began:.1f} s"
        print(f"{self.program.name}: {step.name}: {'failed' if faults else 'ok'}, {took}: {statuses}", flush=True)
        return [f"{self.program.name}: {step.name}: {fault}" for fault in faults]

    def _faults(self, step: Step, status: int | None, output: str) -> list[str]:
        faults = [] if status == 0 else [f"exit status {status}: {output.strip()[-_SHOWN_CHARACTERS:]}"]
        if self.proxy.called < len(step.calls):
            faults.append(f"{self.proxy.called} of the calls {', '.join(step.calls)} came back with a result")
        if step.has_image and not self.proxy.has_seen_image:
            faults.append("it sent no image")
        return faults

    def keep(self, folder: Path) -> None:
        """Write what it sent, and how that was answered."""
        place = folder / self.program.name.replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        for number, exchange in enumerate(self.proxy.seen, 1):
            whole = {**asdict(exchange), "answer": exchange.answer.decode(errors="replace")}
            (place / f"{number:02}.json").write_text(json.dumps(whole, indent=1))


def _url(daemon: RealDaemon) -> str:
    return daemon.base_url.removesuffix("/v1")


def _restart(daemon: RealDaemon) -> None:
    assert daemon.terminate() == 0, daemon.log()
    daemon.start()


def _rows(daemon: RealDaemon) -> dict[str, dict[str, Any]]:
    """Return the rows of the request log by their request."""
    listed = daemon.ask("audit", "list", "--limit", "1000")["requests"]
    return {row["request"]: row for row in listed}


def _table(verdicts: dict[str, Verdict]) -> str:
    lines = [f"{'program':14} requests  2xx  shared tokens  cached  least of a request"]
    for name, verdict in verdicts.items():
        lines.append(
            f"{name:14} {verdict.requests:8} {verdict.answered:4} {verdict.shared_tokens:14} {verdict.share:7.3f}"
            f" {verdict.lowest_share:19.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
