"""The wheel: what is in it, what it asks for, and that it works without the checkout."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mlxctl.supervisor import launchd_folder
from mlxd import __version__

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this checkout, without network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def read_metadata(wheel: Path, name: str) -> str:
    """Return one file of the wheel's dist-info folder."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"mlxd-{__version__}.dist-info/{name}").decode()


def find_requirements(wheel: Path, sys_platform: str) -> dict[str, Requirement]:
    """Return what a plain install asks for on one platform, by name."""
    headers = HeaderParser().parsestr(read_metadata(wheel, "METADATA"))
    parsed = [Requirement(line) for line in headers.get_all("Requires-Dist", [])]
    environment = {"sys_platform": sys_platform, "extra": ""}
    return {item.name: item for item in parsed if item.marker is None or item.marker.evaluate(environment)}


def test_wheel_holds_both_programs_and_nothing_else(wheel: Path) -> None:
    """Packages, both service files and the license are packed; tests and the checkout's own files are not."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    tops = {name.split("/")[0] for name in names}
    assert tops == {"mlxd", "mlxctl", f"mlxd-{__version__}.dist-info"}
    assert {"mlxctl/launchd/local.mlxd.plist", "mlxctl/launchd/mlxd.service"} <= set(names)
    assert f"mlxd-{__version__}.dist-info/licenses/LICENSE" in names
    packed = {name for name in names if name.endswith(".py")}
    assert packed == {str(path.relative_to(ROOT)) for top in ("mlxd", "mlxctl") for path in (ROOT / top).rglob("*.py")}


def test_console_scripts_exist(wheel: Path) -> None:
    """Both programs of the metadata lead to a function."""
    lines = [line for line in read_metadata(wheel, "entry_points.txt").splitlines() if "=" in line]
    programs = dict(line.split(" = ") for line in lines)

    assert set(programs) == {"mlxd", "mlxctl"}
    for target in programs.values():
        module, _, attribute = target.partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))


def test_linux_asks_for_the_cpu_build_and_macos_does_not(wheel: Path) -> None:
    """MLX comes with Metal on macOS and with its CPU backend on Linux."""
    assert find_requirements(wheel, "linux")["mlx"].extras == {"cpu"}
    assert find_requirements(wheel, "darwin")["mlx"].extras == set()


def test_installed_versions_are_those_asked_for(wheel: Path) -> None:
    """What the tests run with satisfies every requirement of a plain install."""
    requirements = find_requirements(wheel, sys.platform)
    installed = {name: importlib.metadata.version(name) for name in requirements}

    assert {"typer", "mlx-lm", "tomlkit"} <= set(requirements)
    unmet = [
        f"{item}, found {installed[name]}"
        for name, item in requirements.items()
        if installed[name] not in item.specifier
    ]
    assert unmet == []
    assert "0.29.0" not in requirements["typer"].specifier
    assert "0.33.0" not in requirements["mlx-lm"].specifier


def test_launchd_folder_of_a_checkout() -> None:
    """From a checkout the template is the one at its top."""
    assert launchd_folder() == ROOT / "launchd"


def test_launchd_folder_of_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """From a wheel the template lies beside the package, byte for byte."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)

    command = [str(python), "-c", "from mlxctl.supervisor import launchd_folder; print(launchd_folder())"]
    found = Path(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip())

    assert found.is_relative_to(tmp_path / "venv")
    for template in ("local.mlxd.plist", "mlxd.service"):
        assert (found / template).read_bytes() == (ROOT / "launchd" / template).read_bytes()


def test_damaged_installation_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the template the error names where it was looked for."""
    monkeypatch.setattr("mlxctl.supervisor._PACKAGE", tmp_path / "mlxctl")

    with pytest.raises(FileNotFoundError, match="damaged"):
        launchd_folder()
