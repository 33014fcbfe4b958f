"""The one map of operation → handler. A test holds it against the table of operations."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mlxd.control import (
    apikey,
    audit,
    cache,
    cloud,
    key,
    model,
    model_settings,
    plan,
    preload,
    process,
    provider,
    report,
    rule,
    setting,
    settings_file,
    spending,
)
from mlxd.control import request as request_handlers
from mlxd.control.context import ControlContext, Handler, Reply, Request
from mlxd.control.page import make_page, place_of_number


async def list_operations(context: ControlContext, request: Request) -> Reply:
    """Return the operations that run and the last that ended, in the order in which they began."""
    shown = context.operations.list()
    numbers = [int(operation["op"].rpartition("-")[2]) for operation in shown]
    return make_page(request.params, "operations", shown, lambda index: place_of_number(numbers[index]))


async def show_operation(context: ControlContext, request: Request) -> Reply:
    """Return one operation."""
    return context.operations.get(request.params["op"]).show()


async def wait_operation(context: ControlContext, request: Request) -> Reply:
    """Return the operation when it has ended or the timeout has passed; sends its progress until then."""
    timeout_ms = request.params.get("timeout_ms")
    timeout_s = None if timeout_ms is None else timeout_ms / 1000
    shown: Reply = {}
    async for shown in context.operations.follow(request.params["op"], timeout_s):
        if shown["state"] == "running":
            await request.progress({name: shown[name] for name in ("op", "phase", "done", "total")})
    return shown


async def cancel_operation(context: ControlContext, request: Request) -> Reply:
    """Give an operation up and return how it ended; what it began in the pool may go on."""
    return (await context.operations.cancel(request.params["op"])).show()


async def stop_daemon(context: ControlContext, request: Request) -> Reply:
    """Begin to shut down; the connection ends when the daemon has."""
    is_now = bool(request.params.get("now", False))
    running = len(context.requests.list())
    context.on_stop(is_now)
    return {"stopping": True, "now": is_now, "requests": running}


HANDLERS: Mapping[str, Handler] = MappingProxyType(
    {
        "ping": report.ping,
        "status": report.status,
        "ps": report.ps,
        "pool.show": report.show_pool,
        "pool.simulate": plan.simulate,
        "pool.evict": plan.evict,
        "queue.show": report.show_queue,
        "settings.get": setting.get,
        "settings.list": setting.list_all,
        "settings.set": setting.set_many,
        "settings.validate": settings_file.validate,
        "settings.path": settings_file.path,
        "settings.read": settings_file.read,
        "settings.reload": settings_file.reload,
        "settings.apply": settings_file.apply,
        "settings.history": settings_file.history,
        "settings.rollback": settings_file.rollback,
        "settings.diff": settings_file.diff,
        "model.list": model.list_all,
        "model.show": model.show,
        "model.estimate": plan.estimate,
        "model.load": model.load,
        "model.unload": model.unload,
        "model.reset": model.reset,
        "model.pin": model_settings.pin,
        "model.unpin": model_settings.unpin,
        "model.set": model_settings.set_many,
        "model.alias.list": model_settings.list_aliases,
        "model.alias.add": model_settings.add_alias,
        "model.alias.remove": model_settings.remove_alias,
        "model.remove": model.remove,
        "catalog.rescan": model.rescan,
        "preload.list": preload.list_all,
        "preload.add": preload.add,
        "preload.remove": preload.remove,
        "preload.set": preload.set_all,
        "cache.rules": cache.list_rules,
        "cloud.show": cloud.show,
        "cloud.enable": cloud.enable,
        "cloud.disable": cloud.disable,
        "cloud.breaker.list": cloud.list_breakers,
        "cloud.breaker.reset": cloud.reset_breakers,
        "cloud.provider.add": provider.add,
        "cloud.provider.set": provider.set_one,
        "cloud.provider.list": provider.list_all,
        "cloud.provider.show": provider.show,
        "cloud.provider.remove": provider.remove,
        "cloud.provider.test": provider.test,
        "cloud.budget.show": spending.show_budget,
        "cloud.budget.set": spending.set_budget,
        "cloud.price.list": spending.list_prices,
        "cloud.price.set": spending.set_price,
        "cloud.price.remove": spending.remove_price,
        "cloud.rule.add": rule.add,
        "cloud.rule.set": rule.set_one,
        "cloud.rule.list": rule.list_all,
        "cloud.rule.show": rule.show,
        "cloud.rule.move": rule.move,
        "cloud.rule.enable": rule.enable,
        "cloud.rule.disable": rule.disable,
        "cloud.rule.remove": rule.remove,
        "cloud.rule.explain": rule.explain,
        "key.set": key.set_one,
        "key.list": key.list_all,
        "key.remove": key.remove,
        "apikey.create": apikey.create,
        "apikey.list": apikey.list_all,
        "apikey.revoke": apikey.revoke,
        "op.list": list_operations,
        "op.show": show_operation,
        "op.wait": wait_operation,
        "op.cancel": cancel_operation,
        "request.list": request_handlers.list_all,
        "request.show": request_handlers.show,
        "request.cancel": request_handlers.cancel,
        "audit.list": audit.list_requests,
        "audit.changes": audit.list_changes,
        "audit.stats": audit.stats,
        "daemon.show": process.show,
        "daemon.stop": stop_daemon,
    }
)
