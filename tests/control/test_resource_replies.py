"""What resources answer and refuse, word for word, held against a golden file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.control import Client, Plane

_GOLDEN = Path(__file__).with_name("resource_replies.txt")
_ADD_P = {"id": "p", "base_url": "http://127.0.0.1:1/v1", "auth_env": "KEY", "idle": "7s"}
_STEPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("cloud.provider.add", _ADD_P),
    ("cloud.provider.add", {"id": "q", "base_url": "https://q/v1", "kind": "anthropic", "auth": "file:secrets/x"}),
    ("cloud.provider.add", {"id": "bad", "base_url": "nowhere"}),
    ("cloud.provider.add", {"id": "bad"}),
    ("cloud.provider.add", {**_ADD_P, "auth": "none"}),
    ("cloud.provider.add", {**_ADD_P, "id": "bad.id"}),
    ("cloud.provider.set", {"id": "p"}),
    ("cloud.provider.set", {"id": "no", "kind": "openai"}),
    ("cloud.provider.set", {"id": "p", "kind": "other"}),
    ("cloud.provider.set", {"id": "p", "auth": "sk-1"}),
    ("cloud.provider.set", {"id": "p", "total": "1h", "proxy": "http://host:3128"}),
    ("cloud.provider.list", {}),
    ("cloud.provider.show", {"id": "p"}),
    ("cloud.provider.show", {"id": "no"}),
    ("cloud.rule.add", {"match": "glob:gpt-*", "mode": "always", "to": ["p/x"]}),
    ("cloud.rule.add", {"id": "r", "match": "exact:r", "mode": "fallback", "to": ["q/x", "p/y"], "priority": 7}),
    ("cloud.rule.add", {"id": "bad", "match": "regex:(", "mode": "always", "to": ["p/x"]}),
    ("cloud.rule.add", {"id": "bad", "match": "x", "mode": "always", "to": ["no/x"]}),
    ("cloud.rule.add", {"id": "bad", "mode": "always"}),
    ("cloud.rule.add", {"id": "bad", "match": "x", "mode": "always", "to": "p/x"}),
    ("cloud.rule.add", {"id": "bad", "match": "x", "mode": "always", "to": ["p/x"], "priority": 10**9}),
    ("cloud.rule.set", {"id": "r"}),
    ("cloud.rule.set", {"id": "no", "priority": 1}),
    ("cloud.rule.set", {"id": "r", "on": ["rain"]}),
    ("cloud.rule.set", {"id": "r", "on": ["oom"], "priority": 8}),
    ("cloud.rule.disable", {"id": "r"}),
    ("cloud.rule.disable", {"id": "no"}),
    ("cloud.rule.list", {}),
    ("cloud.rule.list", {"limit": 1}),
    ("cloud.rule.show", {"id": "r"}),
    ("cloud.rule.show", {}),
    ("cloud.rule.enable", {"id": "r"}),
    ("cloud.rule.move", {"id": "r", "first": True}),
    ("cloud.provider.remove", {"id": "p"}),
    ("cloud.provider.remove", {"id": "p", "cascade": True}),
    ("cloud.price.set", {"target": "q/x", "input": "1.5", "output": "2"}),
    ("cloud.price.set", {"target": "p/x", "input": "1", "output": "2"}),
    ("cloud.price.set", {"target": "x", "input": "1", "output": "2"}),
    ("cloud.price.set", {"target": "q/x", "input": "1"}),
    ("cloud.price.set", {"target": "q/x", "input": "much", "output": "2"}),
    ("cloud.price.list", {}),
    ("settings.read", {}),
    ("cloud.budget.set", {}),
    ("cloud.budget.set", {"usd_per_day": "5"}),
    ("cloud.price.remove", {"target": "q/x"}),
    ("cloud.price.remove", {"target": "q/x"}),
    ("cloud.rule.set", {"id": "r", "mode": "never"}),
    ("cloud.rule.remove", {"id": "r"}),
    ("cloud.rule.remove", {"id": "r"}),
    ("preload.add", {"model": "b", "at": 0}),
    ("preload.add", {"model": "no"}),
    ("preload.remove", {"model": "a"}),
    ("model.alias.add", {"model": "a", "alias": "first"}),
    ("model.alias.add", {"model": "a", "alias": "b"}),
    ("model.alias.list", {}),
    ("model.alias.remove", {"alias": "no"}),
    ("model.set", {"model": "a"}),
    ("model.set", {"model": "a", "changes": {"pin": "maybe"}}),
    ("model.set", {"model": "a", "reload": "soon"}),
    ("model.pin", {"model": "no"}),
    ("key.remove", {"name": "no"}),
    ("apikey.revoke", {"name": "no"}),
    ("apikey.create", {"name": "app", "rate": "often"}),
)


_OF_ALL_CHANGES = frozenset({"gen", "dry_run", "runtime_only", "rewritten", "memory", "op"})


async def test_replies_and_refusals(plane: Plane, client: Client) -> None:
    """Every reply, every error and the settings file are as they were."""
    lines = []
    for name, params in _STEPS:
        answer = await client.request(name, **params)
        shown = answer["r"] if answer["ok"] else answer["e"]
        if "gen" in shown:
            shown = {key: value for key, value in shown.items() if key not in _OF_ALL_CHANGES and value != []}
        lines += [f"{name} {json.dumps(params)}", f"  {json.dumps(shown)}".replace(str(plane.home.root), "HOME")]
    text = "\n".join(lines) + "\n"
    if not _GOLDEN.exists():  # delete it to renew it
        _GOLDEN.write_text(text)
    assert _GOLDEN.read_text() == text
