"""What a start of either program loads: mlxctl starts at each command, mlxd must answer before mlx-lm is there."""

from __future__ import annotations

import graphlib
import subprocess
import sys

import grimp
import pytest

# Imported by mlxctl, each of these would show in the time of every command.
FORBIDDEN_IN_MLXCTL = {
    "asyncio": "80 ms, as much as the rest of the program; the control connection is a blocking socket",
    "aiohttp": "190-300 ms, and the daemon's",
    "mlx": "the device belongs to the daemon",
    "mlx_lm": "a second, with transformers",
    "transformers": "a second",
    "huggingface_hub": "mlxd.download's, a program of its own",
    "gguf": "mlxd.download's, a program of its own",
    "tomlkit": "the settings file belongs to the daemon",
    "orjson": "json is loaded for --json only",
    "pydantic": "typer 0.29 brings it in: 100-160 ms",
    "rich": "output is plain",
    "mlxd.engine": "only the protocol is shared",
    "mlxd.pool": "only the protocol is shared",
    "mlxd.config": "only the protocol is shared",
}
# Imported by the daemon on a worker after its sockets are open.
FORBIDDEN_IN_MLXD = {
    "mlx": "imported by the device thread",
    "mlx_lm": "a second; imported on a worker",
    "mlx_embeddings": "two seconds, and an extra; imported by a worker when an encoder is loaded",
    "transformers": "a second; imported on a worker",
    "huggingface_hub": "mlxd.download's, a program of its own",
    "gguf": "mlxd.download's, a program of its own",
    "typer": "mlxctl's",
    "mlxctl": "the daemon does not know its clients",
}

REPORT = "import sys; print('\\n'.join(sorted(sys.modules)))"


def list_modules(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has after *code*."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{REPORT}"], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["pool", "set-memory", "24GB"],
        ["service", "print"],
        ["top"],
        ["events"],
        ["logs"],
        ["doctor"],
        ["__complete", "zsh", "model", "load", ""],
        ["chat", "x"],
        ["model", "import", "x"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_mlxctl_starts_light(command: list[str]) -> None:
    """No command loads a module that costs more than its work."""
    silent = "contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())"
    loaded = list_modules(f"import contextlib, io\nfrom mlxctl.cli import main\nwith {silent}:\n    main({command!r})")

    assert "mlxctl.cli" in loaded
    assert {name: FORBIDDEN_IN_MLXCTL[name] for name in loaded & set(FORBIDDEN_IN_MLXCTL)} == {}


def test_daemon_starts_without_mlx() -> None:
    """Importing the whole daemon loads none of what takes a second."""
    loaded = list_modules("import mlxd.daemon")

    assert "aiohttp" in loaded
    assert {name: FORBIDDEN_IN_MLXD[name] for name in loaded & set(FORBIDDEN_IN_MLXD)} == {}


@pytest.mark.parametrize("package", ["mlxd", "mlxctl"])
def test_packages_import_nothing(package: str) -> None:
    """Importing a package itself loads none of its modules."""
    assert {name for name in list_modules(f"import {package}") if name.startswith(("mlxd.", "mlxctl."))} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    """What mlxd's modules import, also within functions and for types only, has an order."""
    graph = grimp.build_graph("mlxd", exclude_type_checking_imports=False)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()
