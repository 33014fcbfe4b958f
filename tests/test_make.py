"""`make` and `.ci/venv`, in a copy of the checkout: what they install, when not, what they say is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Answers as the real interpreter does, but records what pip is asked for instead of doing it.
_WITHOUT_PIP = '#!/bin/sh\ncase "$*" in "-m pip"*) echo "$*" >>"{record}" ;; *) exec "{python}" "$@" ;; esac\n'
_OLD_PYTHON = '#!/bin/sh\ncase "$*" in *-V*) echo "Python 3.9.6" ;; *) exit 1 ;; esac\n'
_WITHOUT_ENSUREPIP = '#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; *) exec "{python}" "$@" ;; esac\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy what `make` reads; there is no .venv in it."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    (folder / "mlxd").mkdir()
    for name in ("Makefile", "pyproject.toml", "mlxd/__init__.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def write_program(path: Path, text: str, **values: object) -> Path:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(**values) if values else text)
    path.chmod(0o755)
    return path


def make(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make, or the program that stands first, in the checkout."""
    command = arguments if arguments[0].startswith(".") else ("make", *arguments)
    # MAKEFLAGS of a `make test` around this would say otherwise.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))}
    return subprocess.run(
        command, cwd=checkout, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )


def test_help_lists_every_target(checkout: Path) -> None:
    """Plain `make` does nothing but to say what there is."""
    done = make(checkout, "help")

    assert make(checkout, "--").stdout == done.stdout
    listed = [line.split()[1] for line in done.stdout.splitlines()]
    tests = ["test", "test-clients", "test-agents"]
    benches, soaks = ["bench", "bench-audit", "bench-bodies"], ["soak", "soak-histories", "fuzz-folders"]
    assert listed == ["help", "quickstart", *tests, "lint", "format", *benches, *soaks, "test-architectures", "clean"]


def test_install_is_done_once(checkout: Path, tmp_path: Path) -> None:
    """A repeat installs nothing; a changed pyproject.toml or another extra does; an extra holds the rest."""
    record = tmp_path / "record"
    write_program(checkout / ".venv/bin/python", _WITHOUT_PIP, record=record, python=sys.executable)

    def install(*extra: str) -> list[str]:
        record.write_text("")
        done = make(checkout, ".ci/venv", *extra)
        assert done.returncode == 0, done.stderr
        return [line.split()[-1] for line in record.read_text().splitlines()]

    assert install() == ["."]
    assert install() == []
    assert install("test") == [".[test]"]
    assert install("test") == []
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("\n# one more pin\n")
    assert install("test") == [".[test]"]
    assert install() == []


def test_failed_install_is_not_taken_for_done(checkout: Path, tmp_path: Path) -> None:
    """After a failure the next run tries again, and the last lines of pip are shown."""
    write_program(
        checkout / ".venv/bin/python",
        '#!/bin/sh\ncase "$*" in "-m pip"*) echo "no such luck"; exit 1 ;; *) exec "{python}" "$@" ;; esac\n',
        python=sys.executable,
    )

    for _ in range(2):
        done = make(checkout, ".ci/venv")
        assert done.returncode == 1
        assert "no such luck" in done.stderr


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("connection broken by NewConnectionError", "the package index cannot be reached"),
        ("No version satisfies the requirement mlx>=0.32 (from versions: none)", "there is no MLX for this machine"),
    ],
)
def test_reason_of_a_failed_install_is_plain(checkout: Path, said: str, reason: str) -> None:
    """What pip says in many lines is told in one."""
    write_program(
        checkout / ".venv/bin/python",
        '#!/bin/sh\ncase "$*" in "-m pip"*) echo "{said}"; exit 1 ;; *) exec "{python}" "$@" ;; esac\n',
        python=sys.executable,
        said=said,
    )

    done = make(checkout, "test")

    assert done.returncode != 0
    assert f"error: {reason}" in done.stderr


def test_old_python_is_named(checkout: Path, tmp_path: Path) -> None:
    """With nothing newer at hand the version found and the way to a newer one are told, and no .venv is made."""
    python = write_program(tmp_path / "bin" / "python3", _OLD_PYTHON)

    done = make(checkout, "quickstart", PYTHON=str(python))

    assert done.returncode != 0
    assert f"mlxd needs Python 3.11 or newer; found: {python} Python 3.9.6" in done.stderr
    assert "brew install python" in done.stderr
    assert not (checkout / ".venv").exists()


def test_missing_ensurepip_names_the_package(checkout: Path, tmp_path: Path) -> None:
    """Debian packages ensurepip apart; its name is told before a broken .venv is made."""
    python = write_program(tmp_path / "bin" / "python3", _WITHOUT_ENSUREPIP, python=sys.executable)

    done = make(checkout, "quickstart", PYTHON=str(python))

    assert done.returncode != 0
    assert "apt install python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()


def test_unreachable_index_is_told(checkout: Path) -> None:
    """With a real venv and a real pip, an index that refuses connections is told in one line."""
    nowhere = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_RETRIES": "0",
    }

    done = make(checkout, "quickstart", PYTHON=sys.executable, **nowhere)

    assert done.returncode != 0
    assert "error: the package index cannot be reached" in done.stderr
