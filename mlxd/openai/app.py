"""The aiohttp application: which handler answers which route, behind the boundary and the guard."""

from __future__ import annotations

from aiohttp import web

from mlxd.openai.boundary import add_headers, boundary
from mlxd.openai.chat import post_chat_completions
from mlxd.openai.completions import post_completions
from mlxd.openai.context import CONTEXT, AppContext
from mlxd.openai.guard import guard
from mlxd.openai.health import get_health, get_ready
from mlxd.openai.models import get_model, get_models


def make_app(context: AppContext) -> web.Application:
    """Return the application; it reads settings from the context at every request."""
    app = web.Application(middlewares=[boundary, guard])
    app[CONTEXT] = context
    app.on_response_prepare.append(add_headers)
    app.router.add_post("/v1/chat/completions", post_chat_completions)
    app.router.add_post("/v1/completions", post_completions)
    app.router.add_get("/v1/models", get_models)
    app.router.add_get("/v1/models/{id:.+}", get_model)
    app.router.add_get("/health", get_health)
    app.router.add_get("/ready", get_ready)
    return app
