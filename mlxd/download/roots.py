"""Find the folders in which the daemon looks for models, from its settings file, without the daemon."""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path

from mlxd.catalog import Catalog, ModelEntry, resolve_roots
from mlxd.download.progress import Reporter
from mlxd.protocol.paths import Home
from mlxd.protocol.table import find_row


def find_entry(root: Path, folder: Path) -> ModelEntry | None:
    """Return what a catalog of *root* has for the model in *folder*; None when it does not list it."""
    catalog = Catalog([root])
    catalog.scan()
    return next((entry for entry in catalog.entries() if entry.path.resolve() == folder.resolve()), None)


def note_if_unsearched(root: Path, home: Home, reporter: Reporter) -> None:
    """Say so when the daemon does not look into *root*, with the command that makes it."""
    roots = read_roots(home)
    if not any(other.resolve() == root.resolve() for other in roots):
        paths = ",".join(str(other) for other in (*roots, root))
        reporter.note(f"mlxd does not look into {root}: mlxctl config set catalog.paths {paths}")


def read_roots(home: Home) -> list[Path]:
    """Return the folders that the settings file names, or the default ones."""
    row = find_row(("catalog", "paths"))
    paths: list[str] = row.default if row is not None else []
    # There may be no file yet, or a broken one, which the daemon tells better.
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        paths = tomllib.loads(home.config.read_text())["catalog"]["paths"]
    return resolve_roots(paths, home)
