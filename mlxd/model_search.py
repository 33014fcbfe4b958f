"""The layout and names of model folders on disk.

`NAME` and `ORG/NAME` folders, the Hugging Face cache's layout, and folders of LoRA adapters in any of them. Everything
in here blocks, and nothing raises for what it finds.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from mlxd.engine.model_file import ADAPTER_CONFIG_FILE, CONFIG_FILE, open_regular

HUB_PREFIX = "models--"

_log = logging.getLogger(__name__)
# Files of refs, `pr/1` and `heads/NAME` among them; each holds a commit of 40 characters.
_REFS = ("*", "*/*", "*/*/*")
_MOST_REF_BYTES = 200


def find_folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (id, folder) of every folder under *root* that has the config of a model or of an adapter."""
    for folder in _subfolders(root):
        if folder.name.startswith(HUB_PREFIX):
            repository = folder.name.removeprefix(HUB_PREFIX).replace("--", "/")
            for suffix, snapshot in _snapshots(folder).items():
                yield repository + suffix, snapshot
        elif _has_config(folder):
            yield folder.name, folder
        else:
            for inner in _subfolders(folder):
                if _has_config(inner):
                    yield f"{folder.name}/{inner.name}", inner


def is_adapter(folder: Path) -> bool:
    """Tell a folder of LoRA weights from one of a whole model; fused models keep the config of their adapter."""
    return _probe(folder / ADAPTER_CONFIG_FILE, _is_file) and not _probe(folder / CONFIG_FILE, _is_file)


def is_hub_snapshot(folder: Path) -> bool:
    """Tell whether the folder lies in a Hugging Face cache."""
    return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith(HUB_PREFIX)


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in *folder* by name; hidden ones are downloads in progress. Unreadable: logged, and none."""
    try:
        children = sorted(folder.iterdir())
    except FileNotFoundError:
        return []  # a root that does not exist yet
    except OSError as error:
        _log.warning("skipped the folder %s: %s", folder, error)
        return []
    # Names that are not UTF-8 could not be sent to any client.
    shown = (child for child in children if not child.name.startswith(".") and child.name.isprintable())
    return [child for child in shown if _probe(child, stat.S_ISDIR)]


def _has_config(folder: Path) -> bool:
    return any(_probe(folder / name, _is_file) for name in (CONFIG_FILE, ADAPTER_CONFIG_FILE))


def _is_file(mode: int) -> bool:
    """Whether a file or whatever poses as one; what it is shows when it is read."""
    return not stat.S_ISDIR(mode)


def _probe(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether *path* leads to something of that kind; what cannot be looked at does not."""
    try:
        return is_kind(path.stat().st_mode)
    except FileNotFoundError:
        return False
    except OSError as error:
        _log.warning("skipped %s: %s", path, error)
        return False


def _snapshots(folder: Path) -> dict[str, Path]:
    """Return the served snapshots of a repository in the Hugging Face cache, by the suffix of their id.

    The one of `refs/main`, or the newest when there is none, has no suffix; other refs have `@REF`.
    """
    found = {path.name: path for path in _subfolders(folder / "snapshots") if _has_config(path)}
    if not found:
        return {}
    refs = {ref: found[commit] for ref, commit in _refs(folder / "refs") if commit in found}
    main = refs.pop("main", None)
    if main is None:
        main = max(found.values(), key=_changed_ns)
    served = {"": main}
    for ref, snapshot in refs.items():
        if snapshot not in served.values():
            served[f"@{ref}"] = snapshot
    return served


def _refs(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (ref, commit) of the files under `refs`, which may lie deeper (`refs/pr/1`)."""
    try:
        files = sorted(file for pattern in _REFS for file in folder.glob(pattern))
    except OSError as error:  # `glob` fails where a folder goes away after it was found
        _log.warning("skipped the refs %s: %s", folder, error)
        return
    for file in files:
        try:
            if file.is_file() and file.name.isprintable():
                with open_regular(file) as reader:
                    yield file.relative_to(folder).as_posix(), reader.read(_MOST_REF_BYTES).decode().strip()
        except (OSError, ValueError) as error:
            _log.warning("skipped %s: %s", file, error)


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0  # it went away just now
