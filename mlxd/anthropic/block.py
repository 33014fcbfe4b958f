"""Content blocks → the text that stands for each in the prompt: one reader for system, user, assistant and results.

What a block holds of text is kept. An image, a sound or a file becomes a note in its place, and what has no meaning for
the model of this machine (calls of hosted tools, encrypted thoughts, kinds that are not known) is left out visibly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, TypeVar

import msgspec

from mlxd.anthropic.tool import Toolbox
from mlxd.http.omissions import MEDIA, Omissions
from mlxd.http.schema import Habit, Object, Text, checked, kind_of, read, wrong
from mlxd.protocol.quote import kind_word

Block = Mapping[str, Any]
_C = TypeVar("_C", bound="_Cited")


class Marked(msgspec.Struct, kw_only=True):
    """A block that may say where a prompt is to be cached."""

    type: str
    cache_control: Habit = None


class _Text(Marked, kw_only=True):
    text: str
    citations: Habit = None


class _Cited(Marked, kw_only=True):
    title: str | None = None
    citations: Any = None


class _Document(_Cited, kw_only=True):
    source: Object
    context: str | None = None


class _SearchResult(_Cited, kw_only=True):
    source: str | None = None
    content: Any = None


# The members of results of hosted tools that a model can read, in the order in which it reads them.
_READABLE = ("error_code", "title", "url", "text", "stdout", "stderr", "content", "data", "source")
_MAX_DEPTH = 8


class BlockReader:
    """Reads the blocks of one body."""

    def __init__(self, omissions: Omissions, tools: Toolbox) -> None:
        """Take what collects what is left out, and the tools that blocks refer to."""
        self._omissions = omissions
        self._tools = tools

    def blocks(self, path: str, content: Any) -> list[tuple[str, Block]]:
        """Return the blocks of *content* with their paths: none of null, one of a text.

        Raises:
            InvalidRequest: it is something else, or a block has no type.
        """
        if content is None:
            return []
        if isinstance(content, str):
            return [(path, {"type": "text", "text": content})]
        if not isinstance(content, list):
            raise wrong(path, content, "a text or a list of blocks")
        listed = []
        for place, block in enumerate(content):
            here = f"{path}[{place}]"
            kind_of(here, block)
            listed.append((here, block))
        return listed

    def texts(self, path: str, content: Any) -> list[str]:
        """Return the texts of *content* whose blocks are nothing but text to the model; raises as `text`."""
        texts: list[str] = []
        for kind, group in groupby(self.blocks(path, content), key=lambda found: found[1]["type"]):
            if kind == "tool_reference":
                texts.append(
                    self._tools.refer(
                        [checked(Text, f"{here}.tool_name", each.get("tool_name")) for here, each in group]
                    )
                )
            else:
                texts += [text for here, block in group if (text := self.text(here, block)) or kind == "text"]
        return texts

    def text(self, path: str, block: Block) -> str:
        """Return the text of a block; an empty one where it is left out.

        Raises:
            UnsupportedParameter: it is left out, and that is refused.
            InvalidRequest: it is malformed.
        """
        kind: str = block["type"]
        if kind == "text":
            return read(_Text, block, self._omissions, path).text
        if kind in MEDIA:
            return self._omissions.leave_out_media(path, MEDIA[kind])
        if kind == "document":
            return self._document(path, block)
        if kind == "search_result":
            return self._search_result(path, block)
        if kind == "tool_search_tool_result":
            return self._tools.refer(_referred(block.get("content")))
        if kind in ("tool_addition", "tool_removal"):
            return self._tools.change(path, block)
        if kind.endswith("_tool_result"):
            found = "\n".join(_readable(block.get("content")))
            if found:
                return f"<{kind}>\n{found}\n</{kind}>\n"
        self._omissions.leave_out(
            f"{path}.{kind_word(kind)}", "is a block that means nothing to a model of this machine"
        )
        return ""

    def _document(self, path: str, block: Block) -> str:
        document = self._cited(_Document, path, block)
        match document.source.get("type"):
            case "text":
                text = checked(str, f"{path}.source.data", document.source.get("data"))
            case "content":
                text = self._inner(f"{path}.source.content", document.source.get("content"))
            case _:
                return self._omissions.leave_out_media(path, "file")
        return _tagged("document", text, title=document.title, context=document.context)

    def _search_result(self, path: str, block: Block) -> str:
        found = self._cited(_SearchResult, path, block)
        text = self._inner(f"{path}.content", found.content)
        return _tagged("search_result", text, source=found.source, title=found.title)

    def _inner(self, path: str, content: Any) -> str:
        """Return the text of blocks inside of a block, of which there is one level."""
        texts = []
        for here, block in self.blocks(path, content):
            if block["type"] == "text" or block["type"] in MEDIA:
                texts.append(self.text(here, block))
            else:
                self._omissions.leave_out(f"{here}.{kind_word(block['type'])}", "has no place inside of a block")
        return "".join(texts)

    def _cited(self, shape: type[_C], path: str, block: Block) -> _C:
        """Read a block that may ask for citations, which are left out."""
        cited = read(shape, block, self._omissions, path)
        if isinstance(cited.citations, dict) and cited.citations.get("enabled") is True:
            self._omissions.leave_out(f"{path}.citations")
        return cited


def _tagged(tag: str, text: str, **members: str | None) -> str:
    """Return *text* in a tag, after the members that are there."""
    lines = (f"<{name}>{value}</{name}>" for name, value in members.items() if value is not None)
    return "\n".join([f"<{tag}>", *lines, text, f"</{tag}>", ""])


def _referred(content: Any) -> list[str]:
    """Return the names in the result of a search for tools."""
    listed = content.get("tool_references") if isinstance(content, dict) else None
    found = [each.get("tool_name") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return [name for name in found if isinstance(name, str)]


def _readable(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield the texts in the result of a hosted tool; what is encrypted or encoded has none."""
    if isinstance(value, str):
        if value:
            yield value
    elif depth < _MAX_DEPTH and isinstance(value, list):
        for item in value:
            yield from _readable(item, depth + 1)
    elif depth < _MAX_DEPTH and isinstance(value, dict) and value.get("type") != "base64":
        for name in _READABLE:
            yield from _readable(value.get(name), depth + 1)
