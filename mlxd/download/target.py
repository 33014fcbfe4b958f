"""What is typed after `model pull` and is no name on the hub: told before the hub is asked."""

from __future__ import annotations

import difflib
import re
from urllib.parse import urlsplit

from mlxd.protocol.errors import InvalidRequest

# One word is a name, too: a few old models have no owner.
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def check_target(target: str) -> None:
    """Return when *target* may be a model's name on the hub.

    Raises:
        InvalidRequest: it is an address, a file, a slip of the pen, or no name at all; the hint has the right command.
    """
    if re.match(r"https?://", target):
        name = "/".join(urlsplit(target).path.strip("/").split("/")[:2])
        raise InvalidRequest(
            f"{target!r} is an address; write the model's name",
            hint=f"mlxctl model pull {name}" if _NAME.fullmatch(name) else "mlxctl model pull ORG/NAME",
        )
    if target.lower().endswith(".gguf"):
        raise InvalidRequest(f"{target!r} is a file, and pull fetches", hint=f"mlxctl model import {target}")
    if target.startswith(("/", "./", "../", "~")):
        raise InvalidRequest(
            f"{target!r} is a path; models that lie on this disk need no pull",
            hint="mlxctl config get catalog.paths, which shows where they are looked for; config set adds folders",
        )
    if "/" not in target and difflib.get_close_matches(target, ["starter"], cutoff=0.8):
        raise InvalidRequest(
            f"there is no {target!r}; starter is the name of a small model", hint="mlxctl model pull starter"
        )
    if _NAME.fullmatch(target) is None:
        raise InvalidRequest(
            f"{target!r} is no name of a model on the hub, which is ORG/NAME",
            hint="mlxctl model pull starter, for a small one",
        )
