"""Asks upstreams: the targets of a route in order, with breakers, a budget and keys, until one answers.

Owns the providers whose key was refused. A target is left for the next one on a failure before its first content only;
afterwards the stream is the client's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from mlxd.cloud import connection
from mlxd.cloud.attempt import REFUSED_KEY, Attempt, counts_against, may_go_on, status_of, with_attempts
from mlxd.cloud.breaker import Breakers
from mlxd.cloud.budget import Budget, Reservation
from mlxd.cloud.connection import Reply
from mlxd.cloud.errand import SILENT, Errand
from mlxd.cloud.probe import Probe, answered, failed, tiny_request
from mlxd.cloud.protocol import PROTOCOLS
from mlxd.cloud.protocol.base import whole
from mlxd.cloud.router import CloudRoute, LiveSettings
from mlxd.cloud.secret import Secrets
from mlxd.cloud.sse import Event
from mlxd.cloud.translate import Passthrough, Translation, translation
from mlxd.engine.base import Usage
from mlxd.protocol.errors import (
    AuthFailed,
    BreakerOpen,
    CloudDisabled,
    CloudError,
    InvalidRequest,
    MlxdError,
    RequestCancelled,
    StreamInterrupted,
    UpstreamUnreachable,
)
from mlxd.protocol.settings import CloudSettings, ProviderSettings

# A pause that is shorter than going on to the next target is worth.
_SHORT_RETRY_S = 2.0
# Assumed for an answer whose client set no bound.
_ASSUMED_TOKENS = 4096
_BYTES_PER_TOKEN = 2

Group = list[tuple[Event, dict[str, Any] | None]]


@dataclass(slots=True)
class Answer:
    """An upstream's answer in the client's protocol: a body, or a stream whose first content is here already."""

    route: CloudRoute
    status: int
    body: bytes | None  # None: a stream
    _reply: Reply
    _translation: Translation
    _first: Group = field(default_factory=list)
    _rest: AsyncIterator[Group] | None = None
    cost_micro_usd: int | None = None  # known when it has ended, and only where its target has a price

    @property
    def usage(self) -> Usage | None:
        """What the upstream has counted until now."""
        return self._reply.usage

    @property
    def left_out(self) -> tuple[str, ...]:
        """The fields that the upstream was not sent, as its protocol has no place for them and they are no one's."""
        return self._translation.left_out

    @property
    def failure(self) -> str | None:
        """What the upstream said in its stream of why it broke off; it was passed on."""
        return self._reply.failed

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the stream in the client's protocol.

        Raises:
            StreamInterrupted: the rest does not come.
        """
        async for group in self._groups():
            said = b""
            try:
                for event, parsed in group:
                    said += self._translation.event(event, parsed)
            except CloudError:
                yield said  # what came before the error
                raise
            yield said
        yield self._translation.end()

    async def _groups(self) -> AsyncIterator[Group]:
        yield self._first
        if self._rest is not None:
            async for group in self._rest:
                yield group


class Upstreams:
    """All that requests to providers share."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        secrets: Secrets,
        breakers: Breakers,
        budget: Budget,
        store: LiveSettings,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Take the connections, the keys, and what bounds their use; *sleep* waits a number of seconds.

        The settings in force are asked right before each attempt whether anything may leave at all.
        """
        self._session = session
        self._secrets = secrets
        self._store = store
        self._sleep = sleep
        self.breakers = breakers
        self.budget = budget
        # Provider → its settings and its key when it was refused; either of them changed lifts it.
        self._refused: dict[str, tuple[ProviderSettings, str | None]] = {}

    @property
    def refused(self) -> tuple[str, ...]:
        """The providers whose key was refused, as far as nothing is known to have changed since."""
        providers = self._store.current.cloud.providers
        found = (name for name, (settings, _) in self._refused.items() if providers.get(name) == settings)
        return tuple(sorted(found))

    def forgive(self, provider_id: str) -> None:
        """Ask a provider again that has refused its key: the key has changed, or somebody wants to know."""
        self._refused.pop(provider_id, None)

    async def test(self, provider_id: str, provider: ProviderSettings, model: str | None) -> Probe:
        """Call a provider once: for its models, or for one token of a *model*; failures are an answer as well.

        It is asked for by a person, so the switch of the cloud does not matter; the budget does.
        """
        self.forgive(provider_id)
        started_s = asyncio.get_running_loop().time()
        protocol = PROTOCOLS[provider.kind]
        route = CloudRoute("", provider_id, provider, model or "models")
        url = provider.base_url
        try:
            if model is None:
                url = f"{url}/models"
                secret = await self._secret(route)
                status, body = await connection.get_models(self._session, route, protocol, secret)
                if status in REFUSED_KEY:
                    self._refused[provider_id] = (provider, secret)
                return answered(url, status, body, protocol, secret, _ms(started_s))
            errand = tiny_request(protocol, model)
            url = f"{url}/{errand.endpoint}"
            async with self._try(route, errand, self._store.current.cloud, is_asked_for=True) as answer:
                return answered(url, answer.status, answer.body or b"", protocol, None, _ms(started_s))
        except (CloudError, InvalidRequest) as error:
            return failed(url, error, _ms(started_s))

    @asynccontextmanager
    async def ask(
        self, routes: tuple[CloudRoute, ...], errand: Errand, cloud: CloudSettings, attempts: list[Attempt]
    ) -> AsyncIterator[Answer]:
        """Ask the targets in order and yield the first answer; leaving the context closes its connection.

        A client that goes away cancels this, and with it the connection to the upstream.

        Args:
            routes: the targets, at least one.
            errand: what to ask.
            cloud: the settings when the request came: prices and budget.
            attempts: where each try is noted at its end, also one that ends with the client's going.

        Raises:
            InvalidRequest: the body cannot be said in the protocol of any target, or an upstream has refused it.
            CloudError: no target has answered; `data["attempts"]` tells what was tried.
            StreamInterrupted: inside of the context, when a stream breaks off.
        """
        failure: MlxdError | None = None
        for route in routes:
            for is_last_try in (False, True):
                started_s = asyncio.get_running_loop().time()
                try:
                    async with self._try(route, errand, cloud) as answer:
                        attempts.append(Attempt(route.target, answer.status, None, _ms(started_s)))
                        yield answer
                        return
                except asyncio.CancelledError:
                    if not any(attempt.code is None for attempt in attempts):
                        attempts.append(Attempt(route.target, None, RequestCancelled.code, _ms(started_s)))
                    raise
                except StreamInterrupted as error:
                    raise with_attempts(error, attempts) from error.__cause__
                except (CloudError, InvalidRequest) as error:
                    if any(attempt.code is None for attempt in attempts):
                        raise  # of an answer that was handed out
                    failure = error
                    attempts.append(Attempt(route.target, status_of(error), error.code, _ms(started_s)))
                    if is_last_try or not await self._may_try_again(error):
                        break
            if not may_go_on(failure):
                break
        raise with_attempts(failure or UpstreamUnreachable("there is no target"), attempts)

    @asynccontextmanager
    async def _try(
        self, route: CloudRoute, errand: Errand, cloud: CloudSettings, *, is_asked_for: bool = False
    ) -> AsyncIterator[Answer]:
        protocol = PROTOCOLS[route.provider.kind]
        between = translation(errand, protocol.name)
        said = errand.parse()
        body, longest_tokens = between.request(errand.raw, said, route.model), most_tokens(errand.endpoint, said)
        del said  # the answer may take long
        secret = await self._secret(route)
        reservation = await self._reserve(route, errand, longest_tokens, cloud)
        if not is_asked_for and not self._store.current.cloud.enabled:
            self.budget.cancel(reservation)
            raise CloudDisabled("the cloud was turned off meanwhile", hint="mlxctl cloud enable")
        admission = self.breakers.admit(route.target)
        if admission is None:
            self.budget.cancel(reservation)
            raise BreakerOpen(
                f"{route.target} has failed too often and is left alone for a while", hint="mlxctl cloud breaker list"
            )
        reply: Reply | None = None
        may_have_cost = True
        outcome: bool | None = None  # failed, or not; None: nobody knows
        answer: Answer | None = None
        try:
            async with connection.post(
                self._session,
                route,
                protocol,
                between.endpoint,
                body,
                secret=secret,
                errand=errand,
                passed=errand.headers if isinstance(between, Passthrough) else {},
            ) as reply:
                answer = await self._opened(route, reply, between, wants_stream=errand.wants_stream)
                outcome = False
                admission = self.breakers.begin(admission)
                yield answer
        except AuthFailed:
            self._refused[route.provider_id] = (route.provider, secret)
            outcome = False
            raise
        except CloudError as error:
            outcome = counts_against(error)
            may_have_cost = not isinstance(error, UpstreamUnreachable)
            raise
        finally:
            if outcome is None:
                self.breakers.abandon(admission)
            else:
                self.breakers.record(admission, failed=outcome)
            cost = self._settle(reservation, reply, may_have_cost=may_have_cost)
            if answer is not None and reservation.price is not None:
                answer.cost_micro_usd = cost

    async def _opened(self, route: CloudRoute, reply: Reply, between: Translation, *, wants_stream: bool) -> Answer:
        """Return the answer once it has begun; raise what is none."""
        if not 200 <= reply.status < 300:
            refusal = await reply.read()
            failure = reply.failure(refusal)
            if isinstance(between, Passthrough) and not may_go_on(failure) and reply.is_envelope(refusal):
                return Answer(route, reply.status, refusal, reply, between)  # the client's own mistake
            raise failure
        if reply.is_stream is not wants_stream:
            raise reply.mismatch()
        if not reply.is_stream:
            body = between.answer(await reply.read())
            return Answer(route, reply.status, body, reply, between)
        rest = reply.events()
        first: Group = await anext(rest, [])
        return Answer(route, reply.status, None, reply, between, first, rest)

    async def _secret(self, route: CloudRoute) -> str | None:
        secret = await self._secrets.read(route.provider_id, route.provider.auth)
        if self._refused.get(route.provider_id) == (route.provider, secret):
            raise AuthFailed(
                f"provider {route.provider_id!r} has refused its key; it is not asked again until the key or the"
                " provider changes",
                hint="mlxctl cloud provider list",
                data={"target": route.target},
            )
        self._refused.pop(route.provider_id, None)
        return secret

    async def _reserve(
        self, route: CloudRoute, errand: Errand, longest_tokens: int, cloud: CloudSettings
    ) -> Reservation:
        prompt_tokens = len(errand.raw) // _BYTES_PER_TOKEN + 1
        price = cloud.prices.get(route.target)
        return await self.budget.reserve(cloud.budget, price, route.target, prompt_tokens, longest_tokens)

    def _settle(self, reservation: Reservation, reply: Reply | None, *, may_have_cost: bool) -> int:
        """Book what it has cost, and return it; all that was set aside where nobody counted, nothing for a refusal."""
        if reply is None:
            return self.budget.settle(reservation, None if may_have_cost else (0, 0))
        if reply.usage is not None and reply.is_whole:
            return self.budget.settle(reservation, (reply.usage.prompt_tokens, reply.usage.completion_tokens))
        return self.budget.settle(reservation, None if 200 <= reply.status < 300 else (0, 0))

    async def _may_try_again(self, error: MlxdError) -> bool:
        """Return whether the same target is tried once more: where nothing was sent, or after a short pause."""
        if isinstance(error, UpstreamUnreachable):
            return True
        pause_s = error.retry_after_s
        if status_of(error) != 429 or pause_s is None or pause_s > _SHORT_RETRY_S:
            return False
        await self._sleep(pause_s)
        return True


def most_tokens(endpoint: str, body: Mapping[str, Any]) -> int:
    """Return how long the answers to a body may be at most, all of them together."""
    if endpoint in SILENT:
        return 0
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    bound = max((whole(body.get(name)) for name in names), default=0)
    answers = max(1, whole(body.get("n")), whole(body.get("best_of")))
    prompt = body.get("prompt") if endpoint == "completions" else None
    # A list of numbers is one prompt.
    prompts = sum(isinstance(each, str | list) for each in prompt) if isinstance(prompt, list) else 1
    return (bound or _ASSUMED_TOKENS) * answers * max(1, prompts)


def _ms(started_s: float) -> int:
    return round((asyncio.get_running_loop().time() - started_s) * 1000)
