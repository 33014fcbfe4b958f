"""Parts of a body that this machine leaves out: named in a response header and in both logs, or refused.

A field, a value or a part is left out where the rest of the request makes sense without it. What would change the
meaning of the answer is never left out: its reader refuses it.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter

_log = logging.getLogger(__name__)

# Kinds of content, in the words of all protocols → what the note that takes their place calls them.
MEDIA = {
    **dict.fromkeys(("image", "image_url", "input_image", "computer_screenshot"), "image"),
    **dict.fromkeys(("audio", "audio_url", "input_audio", "output_audio"), "audio"),
    **dict.fromkeys(("video", "video_url", "input_video"), "video"),
    **dict.fromkeys(("file", "input_file", "container_upload"), "file"),
}
_SHOWN_CHARACTERS = 64
_MAX_NAMES = 20
_MAX_TOLD = 1024
_PRODUCT = re.compile(r"[\w.+-]{1,40}")
_PLACE = re.compile(r"\[[0-9]+\]")


class Omissions:
    """Collects the names of what is left out of one body."""

    def __init__(self, model: str, *, rejects_fields: bool = False, rejects_media: bool = False) -> None:
        """Take the model that is asked for, and the settings.

        Args:
            model: as the client calls it; stands in the note that takes the place of an image.
            rejects_fields: the first omission is an error (`http.unknown_fields = "reject"`).
            rejects_media: the first image, sound or file is an error (`http.media = "reject"`).
        """
        self._model = model
        self._rejects_fields = rejects_fields
        self._rejects_media = rejects_media
        self._names: dict[str, None] = {}

    @property
    def names(self) -> Collection[str]:
        """The paths noted so far, in order, each once; at most 20. A live view."""
        return self._names.keys()

    def note(self, path: str, given: Mapping[str, Any], known: Collection[str]) -> None:
        """Note the keys of *given*, an object at *path* in the body, that are not *known*.

        Raises:
            InvalidRequest: there is one, and omissions are refused.
        """
        for key in given:
            if key not in known:
                name = (f"{path}.{key}" if path else key)[:_SHOWN_CHARACTERS]
                if self._rejects_fields:
                    near = difflib.get_close_matches(key[:_SHOWN_CHARACTERS], known, n=1)
                    hint = f"; the nearest is {near[0]}" if near else ""
                    raise InvalidRequest(f"there is no field {name!r}{hint}", param=name)
                self._add(name)

    def leave_out(self, name: str, reason: str = "is not supported") -> None:
        """Note that the field or list item *name* is left out, of which *reason* says what is wrong.

        Raises:
            UnsupportedParameter: omissions are refused.
        """
        if self._rejects_fields:
            raise UnsupportedParameter(f"{name} {reason}; leave it out", param=name)
        self._add(name)

    def leave_out_media(self, name: str, kind: str) -> str:
        """Note that the content part *name* is left out; return the text that takes its place.

        Args:
            name: its path in the body.
            kind: image, audio, video or file.

        Raises:
            UnsupportedParameter: `http.media` refuses them.
        """
        if self._rejects_media:
            message = f"{name} holds {_with_article(kind)}, and model '{self._model}' reads text only"
            raise UnsupportedParameter(message, hint="leave it out", param=name)
        self._add(name)
        return f"[{kind} omitted: {self._model} reads text only]"

    def _add(self, name: str) -> None:
        if len(self._names) < _MAX_NAMES:
            self._names[name[:_SHOWN_CHARACTERS]] = None


class OmissionLog:
    """Tells the daemon's log once per client what is left out of its requests."""

    def __init__(self) -> None:
        """Have told nothing."""
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()

    def tell(self, user_agent: str | None, names: Collection[str]) -> None:
        """Log those of *names* that this client has not been told of; places in lists count as one."""
        product = _PRODUCT.match(user_agent or "")
        client = product.group() if product else "a client without a User-Agent"
        new = []
        for name in dict.fromkeys(_PLACE.sub("[]", name) for name in names):
            if (client, name) not in self._told:
                new.append(name)
            self._told[client, name] = None
            self._told.move_to_end((client, name))
        while len(self._told) > _MAX_TOLD:
            self._told.popitem(last=False)
        if new:
            _log.warning("left out of what %s asks for, as this machine does not serve it: %s", client, ", ".join(new))


def _with_article(kind: str) -> str:
    return f"an {kind}" if kind == "image" else kind if kind in ("audio", "video") else f"a {kind}"
