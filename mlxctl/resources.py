"""Where the files that are not Python lie: beside this package in a wheel, at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def launchd_folder() -> Path:
    """Return the folder with the templates of the LaunchAgent and of the systemd user unit.

    Raises:
        FileNotFoundError: the installation is damaged; the message names both places.
    """
    packed, checkout = _PACKAGE / "launchd", _PACKAGE.parent / "launchd"
    for folder in (packed, checkout):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the installation is damaged: neither {packed} nor {checkout} exists")
