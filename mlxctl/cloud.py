"""`mlxctl cloud`: providers, rules, whether anything may leave this machine, what it may cost, what is left alone."""

from __future__ import annotations

from mlxctl.call import Document
from mlxctl.noun import add_verbs, make_noun
from mlxctl.output import format_pairs, format_table, show_duration
from mlxctl.verb import make_app
from mlxd.protocol.settings import DEFAULT_TRIGGERS
from mlxd.protocol.units import count

_MICRO = 1_000_000
_MOST_SHOWN = 20


def _format_cloud(document: Document) -> str:
    state = "on" if document["enabled"] else "off: no request leaves this machine (mlxctl cloud enable)"
    parts = [f"cloud: {state}", _format_providers(document), _format_rules(document)]
    if document.get("budget") is not None:
        parts.append(_format_budget(document["budget"]))
    if document.get("breakers"):
        parts.append(_format_breakers(document))
    return "\n\n".join(parts)


def _format_providers(document: Document) -> str:
    """Return the providers as a table."""
    if not document["providers"]:
        return "no provider; mlxctl cloud provider add ID --base-url URL"
    return format_table(
        [
            ("PROVIDER", "id"),
            ("KIND", "kind"),
            ("BASE URL", "base_url"),
            ("KEY FROM", lambda item: item.get("auth") or item.get("auth_env")),
            ("STATE", "state"),
        ],
        document["providers"],
    )


def _format_provider(document: Document) -> str:
    timeouts = document["timeouts_ms"].items()
    return format_pairs(
        [
            ("provider", document["id"]),
            ("kind", document["kind"]),
            ("base URL", document["base_url"]),
            ("proxy", document.get("proxy")),
            ("key from", document["auth"] or "nowhere: it needs none"),
            ("state", document["state"]),
            ("problem", document["key_problem"]),
            ("timeouts", ", ".join(f"{name} {show_duration(value / 1000)}" for name, value in timeouts)),
            ("rules", ", ".join(document["rules"]) or "none"),
        ]
    )


def _format_test(document: Document) -> str:
    models = document["models"]
    more = f" and {len(models) - _MOST_SHOWN} more" if len(models) > _MOST_SHOWN else ""
    return format_pairs(
        [
            ("provider", document["id"]),
            ("called", document["url"]),
            ("result", "ok" if document["ok"] else document["code"]),
            ("status", document["status"]),
            ("took", f"{document['ms']}ms"),
            ("reason", document["reason"]),
            ("models", f"{len(models)}: {', '.join(models[:_MOST_SHOWN])}{more}" if models else None),
        ]
    )


def _format_rules(document: Document) -> str:
    """Return the rules as a table."""
    if not document["rules"]:
        return "no rule; mlxctl cloud rule add ID --match PATTERN --to PROVIDER/MODEL"
    return format_table(
        [
            ("RULE", lambda item: item["id"] if item.get("enabled", True) else f"{item['id']} (disabled)"),
            ("MATCH", "match"),
            ("MODE", "mode"),
            ("ON", _triggers),
            ("TO", "to"),
            ("PRIORITY", "priority"),
        ],
        document["rules"],
        optional=["ON"],
    )


def _triggers(item: Document) -> str | None:
    """Return the failures that a rule is for; those of every such rule by one word."""
    given = list(item.get("on", ()))
    usual = [trigger for trigger in given if trigger in DEFAULT_TRIGGERS]
    if len(usual) < len(DEFAULT_TRIGGERS):
        return ", ".join(given) or None
    return ", ".join(["failures", *(trigger for trigger in given if trigger not in DEFAULT_TRIGGERS)])


def _format_rule(document: Document) -> str:
    return format_pairs(
        [
            ("rule", document["id"]),
            ("match", document["match"]),
            ("mode", document["mode"]),
            ("on", ", ".join(document["on"]) or None),
            ("to", ", ".join(document["to"]) or None),
            ("priority", document["priority"]),
            ("enabled", "yes" if document["enabled"] else "no"),
            ("place", f"{document['place']} of {document['of']}"),
        ]
    )


def _format_explanation(document: Document) -> str:
    triggers = ", ".join(document.get("triggers", ()))
    parts = [
        format_pairs(
            [
                ("model", document["model"]),
                ("alias of", document.get("alias_of")),
                ("route", document["route"]),
                ("rule", document.get("rule")),
                ("target", ", then ".join(document.get("targets") or ()) or document.get("target")),
                ("reason", document.get("reason")),
                ("cloud after", triggers if triggers and document["route"] != "cloud" else None),
            ]
        )
    ]
    if document.get("rules"):
        parts.append(format_table([("RULE", "id"), ("VERDICT", "verdict")], document["rules"]))
    return "\n\n".join(parts)


def _retry_in(item: Document) -> str | None:
    return None if item["retry_in_ms"] is None else show_duration(item["retry_in_ms"] / 1000)


def _format_breakers(document: Document) -> str:
    if not document["breakers"]:
        return "no target was tried in the last minute, none is left alone"
    return format_table(
        [
            ("TARGET", "target"),
            ("STATE", "state"),
            ("FAILED", "failures"),
            ("OF", "attempts"),
            ("ASKED AGAIN IN", _retry_in),
        ],
        document["breakers"],
    )


def _format_budget(document: Document) -> str:
    usd, requests = document["usd_per_day_micro"], document["requests_per_day"]
    spent = f"{_usd(document['spent_micro'])} spent, {_usd(document['reserved_micro'])} reserved"
    money = f"{spent}, no bound" if usd is None else f"{spent} of {_usd(usd)} USD"
    sent = f"{document['requests']} sent, no bound" if requests is None else f"{document['requests']} of {requests}"
    unpriced = ", ".join(document["unpriced"])
    refused = f"{unpriced} (mlxctl cloud price set TARGET --input USD --output USD)" if unpriced else None
    return format_pairs(
        [("day", f"{document['date']} (UTC)"), ("money", money), ("requests", sent), ("not asked, no price", refused)]
    )


def _usd(micro: int) -> str:
    return f"{micro / _MICRO:.4f}".rstrip("0").rstrip(".")


def _format_prices(document: Document) -> str:
    if not document["prices"]:
        return "no price; mlxctl cloud price set PROVIDER/MODEL --input USD --output USD"
    return format_table(
        [
            ("TARGET", "target"),
            ("INPUT", lambda item: f"{item['input']:g}"),
            ("OUTPUT", lambda item: f"{item['output']:g}"),
        ],
        document["prices"],
    )


_VIEWS = {
    "cloud.show": _format_cloud,
    "cloud.provider.list": _format_providers,
    "cloud.provider.show": _format_provider,
    "cloud.provider.test": _format_test,
    "cloud.rule.list": _format_rules,
    "cloud.rule.show": _format_rule,
    "cloud.rule.explain": _format_explanation,
    "cloud.breaker.list": _format_breakers,
    "cloud.breaker.reset": lambda document: f"{count(document['closed'], 'breaker')} closed",
    "cloud.budget.show": _format_budget,
    "cloud.price.list": _format_prices,
}

app = make_app("Send requests for some names to other servers.")
add_verbs(app, "cloud", _VIEWS)
for _name, _help in {
    "breaker": "Targets that keep failing are left alone for a while.",
    "budget": "What a day may cost.",
}.items():
    app.add_typer(make_noun(f"cloud.{_name}", _help, _VIEWS), name=_name)
