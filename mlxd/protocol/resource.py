"""Resources: keyed tables of the settings with verbs of their own. One description makes their operations and verbs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mlxd.protocol.operation import PAGE, Operation, Param, ParamType, argument, flag, text
from mlxd.protocol.settings import Row
from mlxd.protocol.table import rows

_TYPES = {"integer": ParamType.INTEGER, "array": ParamType.TEXTS}
_PLAIN = (str, int, float)


@dataclass(frozen=True, slots=True)
class Resource:
    """A keyed table of the settings, whose entries have verbs.

    The fields of an entry are the params of `add` and `set`. `add` makes an entry or replaces what is given of one, and
    needs what has no default; without `add`, `set` does that. `enable` and `disable` are for the field `enabled`.

    Attributes:
        noun: what mlxctl and the operations call it, with dots.
        path: of the table in the settings; its last part is what a reply calls the list.
        help: of the noun.
        word: what sentences call an entry.
        verbs: list, show, add, set, enable, disable and remove, those that it has, with the help of each.
        id: name of the param that names the entry, and the param.
        words: field or table → what help calls its value, where its kind does not say.
        params: instead of the params made from fields of these names, or beside them.
        more: verb → params that this verb alone has, or has otherwise.
        others: its operations of other verbs.
    """

    noun: str
    path: tuple[str, ...]
    help: str
    word: str
    verbs: Mapping[str, str]
    id: tuple[str, Param]
    words: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Param] = field(default_factory=dict)
    more: Mapping[str, dict[str, Param]] = field(default_factory=dict)
    others: tuple[Operation, ...] = ()

    @property
    def lists(self) -> str:
        """What a reply calls the list of entries."""
        return self.path[-1]

    @property
    def fields(self) -> Mapping[str, tuple[tuple[str, ...], Row]]:
        """Name of each field of an entry → its path there, and its row."""
        prefix = (*self.path, "*")
        return {path[-1]: (path[len(prefix) :], row) for path, row in rows() if path[: len(prefix)] == prefix}

    def operations(self) -> Iterator[Operation]:
        """Yield its operations."""
        for verb, help_text in self.verbs.items():
            params = PAGE if verb == "list" else dict([self.id])
            if verb in {"add", "set"}:
                params = {**params, **self._fields(is_whole=verb == "add" or "add" not in self.verbs), **self.params}
            yield Operation(
                f"{self.noun}.{verb}",
                help_text,
                {**params, **self.more.get(verb, {})},
                lists=self.lists if verb == "list" else "",
                commits=verb not in {"list", "show"},
            )
        yield from self.others

    def _fields(self, *, is_whole: bool) -> dict[str, Param]:
        return {
            name: self._param(name, path, row, is_whole=is_whole)
            for name, (path, row) in self.fields.items()
            if name != "enabled" or "enable" not in self.verbs
        }

    def _param(self, name: str, path: tuple[str, ...], row: Row, *, is_whole: bool) -> Param:
        schema: Mapping[str, Any] = row.kind.schema()
        kind = _TYPES.get(schema.get("type", ""), ParamType.TEXT)
        table = path[0] if len(path) > 1 else ""
        word = "N" if kind is ParamType.INTEGER else "|".join(schema.get("enum", ()))
        word = self.words.get(table or name, word)
        help_text = row.help
        if is_whole and isinstance(row.default, _PLAIN) and not isinstance(row.default, bool):
            help_text = f"{help_text.removesuffix('.')}; {row.default} when left out."
        if kind is ParamType.TEXTS:
            help_text = f"{help_text.removesuffix('.')}; several with commas."
        return Param(kind, help_text, is_whole and row.is_required, word, table=table)


_TARGET = argument("The target, as rules name it.", "PROVIDER/MODEL")
_PROVIDER = argument("Name of the provider.")
_RULE = argument("Name of the rule.")

_TABLE = (
    Resource(
        "cloud.provider",
        ("cloud", "providers"),
        "Upstream servers.",
        "provider",
        {
            "add": "Add an upstream server, or change one.",
            "set": "Change what is given of an upstream server; running requests end as they began.",
            "list": "The upstream servers.",
            "show": "One upstream server, its timeouts, and the rules that use it.",
            "remove": "Remove an upstream server that no rule uses.",
        },
        ("id", _PROVIDER),
        words={"base_url": "URL", "proxy": "URL|none", "timeouts": "NAME=DURATION"},
        params={
            "auth": text("Where the key is: env:NAME, file:PATH, keychain:SERVICE/NAME or none.", "WHERE"),
            "auth_env": text("Environment variable of the daemon that holds the key.", "NAME"),
        },
        more={"remove": {"cascade": flag("Take it out of the rules as well; one that is left empty goes.")}},
        others=(
            Operation(
                "cloud.provider.test",
                "Call an upstream server once, whether the cloud is on or off, and say what came back.",
                {
                    "id": _PROVIDER,
                    "model": text("Ask this model for one token instead of for the list of models.", "NAME"),
                },
            ),
        ),
    ),
    Resource(
        "cloud.rule",
        ("cloud", "rules"),
        "Which names go where.",
        "rule",
        {
            "add": "Add a rule: which names it is for, and where they go.",
            "set": "Change what is given of a rule.",
            "list": "The rules in the order in which they are tried.",
            "show": "One rule, and its place in the order.",
            "enable": "Have a rule count.",
            "disable": "Keep a rule, and do without it.",
            "remove": "Remove a rule.",
        },
        ("id", _RULE),
        words={"match": "PATTERN", "on": "FAILURE", "to": "PROVIDER/MODEL"},
        more={"add": {"id": argument("Name of the rule; made from the match when left out.", required=False)}},
        others=(
            Operation(
                "cloud.rule.move",
                "Have a rule tried earlier or later: changes priorities, as few as can be.",
                {
                    "id": _RULE,
                    "before": text("Right before this one.", "RULE"),
                    "after": text("Right after this one.", "RULE"),
                    "first": flag("Before all others; never rules stay in front of the rest."),
                    "last": flag("After all others."),
                },
                commits=True,
            ),
            Operation(
                "cloud.rule.explain",
                "Say where a request for a name would go, and why; sends nothing.",
                {
                    "model": argument("The name that a client asks for."),
                    "assume": text("Take this local failure to have happened, such as queue_full.", "FAILURE"),
                },
            ),
        ),
    ),
    Resource(
        "cloud.price",
        ("cloud", "prices"),
        "What targets cost.",
        "price",
        {
            "list": "The prices, in US dollars per million tokens.",
            "set": "Say what a target costs.",
            "remove": "Forget what a target costs.",
        },
        ("target", _TARGET),
        words={"input": "USD", "output": "USD"},
    ),
)
RESOURCES: Mapping[str, Resource] = MappingProxyType({resource.noun: resource for resource in _TABLE})
