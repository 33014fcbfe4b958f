"""THE table of TCP routes, and the application that answers them, behind the boundary and the guard."""

from __future__ import annotations

from aiohttp import hdrs, web

from mlxd.anthropic.messages import post_count_tokens, post_messages
from mlxd.anthropic.schema import CountBody, MessagesBody
from mlxd.http.boundary import add_headers, boundary
from mlxd.http.context import CONTEXT, AppContext
from mlxd.http.guard import guard
from mlxd.http.health import get_health, get_ready, get_root
from mlxd.http.openapi import DESCRIBED, Route, get_openapi
from mlxd.http.sampling import Sampling
from mlxd.http.status import get_metrics, get_status
from mlxd.openai.chat import post_chat_completions
from mlxd.openai.completions import post_completions
from mlxd.openai.embeddings import EmbeddingBody, post_embeddings
from mlxd.openai.models import get_model, get_models
from mlxd.openai.response_schema import InputCountBody, ResponseBody
from mlxd.openai.response_store import (
    RESPONSES,
    ItemsQuery,
    ResponseQuery,
    ResponseStore,
    cancel_response,
    delete_response,
    get_input_items,
    get_response,
)
from mlxd.openai.responses import post_input_tokens, post_responses
from mlxd.openai.schema import ChatBody, CompletionBody

ROUTES = (
    Route("POST", "/v1/chat/completions", post_chat_completions, (ChatBody, Sampling)),
    Route("POST", "/v1/completions", post_completions, (CompletionBody, Sampling)),
    Route("POST", "/v1/embeddings", post_embeddings, (EmbeddingBody,)),
    Route("POST", "/v1/responses", post_responses, (ResponseBody, Sampling)),
    Route("POST", "/v1/responses/input_tokens", post_input_tokens, (InputCountBody,)),
    Route("GET", "/v1/responses/{id}", get_response, query=ResponseQuery),
    Route("DELETE", "/v1/responses/{id}", delete_response),
    Route("GET", "/v1/responses/{id}/input_items", get_input_items, query=ItemsQuery),
    Route("POST", "/v1/responses/{id}/cancel", cancel_response),
    Route("POST", "/v1/messages", post_messages, (MessagesBody, Sampling)),
    Route("POST", "/v1/messages/count_tokens", post_count_tokens, (CountBody,)),
    Route("GET", "/v1/models", get_models),
    Route("GET", "/v1/models/{id:.+}", get_model),
    Route("GET", "/", get_root),
    Route("GET", "/health", get_health),
    Route("GET", "/ready", get_ready),
    Route("GET", "/metrics", get_metrics),
    Route("GET", "/status", get_status),
    Route("GET", "/openapi.json", get_openapi),
)


def make_app(context: AppContext) -> web.Application:
    """Return the application; it reads settings from the context at every request."""
    app = web.Application(middlewares=[boundary, guard])
    app[CONTEXT] = context
    app[RESPONSES] = ResponseStore(lambda: context.store.current.http)
    context.metrics.watch(context.pool.status, context.upstreams.breakers.list)
    app[DESCRIBED] = ROUTES
    app.on_response_prepare.append(add_headers)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
        if route.method == hdrs.METH_GET:
            app.router.add_route(hdrs.METH_HEAD, route.path, route.handler)
    return app
