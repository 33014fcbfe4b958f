"""Listening beyond loopback needs an API key, or a setting that says so in so many words."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from mlxd.control.context import HttpState
from mlxd.http.context import CONTEXT
from mlxd.http.exchange import EXCHANGE, Exchange
from mlxd.http.guard import guard, is_allowed_host
from mlxd.http.server import HttpServer, ServerStatus
from mlxd.protocol.errors import Forbidden, InvalidValue
from mlxd.protocol.paths import Home
from mlxd.protocol.table import SettingProblem
from tests.support.clock import FakeClock
from tests.support.control import CONFIG, running_plane
from tests.support.http_server import serving, settings_of
from tests.support.scripted_pool import ScriptedPool, end

OPEN = {"http": {"host": "0.0.0.0", "port": 0}}


@pytest.mark.parametrize(
    ("http", "has_keys", "is_refused"),
    [
        ({"host": "0.0.0.0"}, False, True),
        ({"host": "::"}, False, True),
        ({"host": "10.1.2.3"}, False, True),
        ({"host": "0.0.0.0"}, True, False),
        ({"host": "0.0.0.0", "allow_open": True}, False, False),
        ({"host": "127.0.0.5"}, False, False),
        ({"host": "::1"}, False, False),
        ({"host": "localhost"}, False, False),
    ],
)
def test_what_is_refused(http: dict[str, object], has_keys: bool, is_refused: bool) -> None:
    """With the reason and the next command."""
    clock = FakeClock()
    server = HttpServer(web.Application(), settings_of().http, clock=clock, has_keys=lambda: has_keys)
    settings = settings_of({"http": http})
    if not is_refused:
        assert server.check(settings) == []
        return
    with pytest.raises(InvalidValue, match="is not loopback, and without an API key") as caught:
        server.check(settings, force=True)
    assert caught.value.hint == "mlxctl apikey create NAME, or mlxctl config set http.allow_open=true"


async def test_at_boot_it_does_not_listen_until_there_is_a_key() -> None:
    """The state says why; a key is noticed by itself."""
    clock, keys = FakeClock(), list[str]()
    server = HttpServer(web.Application(), settings_of(OPEN).http, clock=clock, has_keys=lambda: bool(keys))
    await server.start()
    try:
        refused = server.state
        assert (refused.status, refused.address) == (ServerStatus.REFUSED, None)
        assert "mlxctl apikey create NAME" in str(refused.reason)
        keys.append("app")
        clock.run_next()
        async with asyncio.timeout(20):
            while server.state.status is not ServerStatus.LISTENING:  # noqa: ASYNC110  (it has no event)
                await asyncio.sleep(0)
        assert str(server.state.address).startswith("0.0.0.0:")
    finally:
        await server.close()


@pytest.mark.parametrize("value", ["mac.local", "", "10.0.0", "0.0.0.0:80", 80])
def test_a_name_is_no_address_to_listen_on(value: object) -> None:
    """What it means may change behind our back."""
    with pytest.raises(SettingProblem, match="an IP address, or localhost"):
        settings_of({"http": {"host": value}})


def test_the_address_that_is_listened_on_is_an_allowed_host() -> None:
    """In numbers; names stay a matter of the setting."""
    at = ipaddress.ip_address("10.1.2.3")
    assert is_allowed_host("10.1.2.3:6593", (), at)
    assert not is_allowed_host("10.1.2.4:6593", (), at)
    assert not is_allowed_host("rebound.example", (), at)


async def test_whoever_came_to_an_address_of_the_network_needs_a_key() -> None:
    """It may be the Host, and probes are answered there."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response()

    async with serving(ScriptedPool(end())) as served:
        app = web.Application()
        app[CONTEXT] = served.context

        async def came_to(address: str, path: str) -> web.StreamResponse:
            transport = SimpleNamespace(get_extra_info=lambda name: (address, 6593) if name == "sockname" else None)
            request = make_mocked_request("GET", path, {"Host": f"{address}:6593"}, app=app, transport=transport)
            request[EXCHANGE] = Exchange("r")
            return await guard(request, answer)

        with pytest.raises(Forbidden, match=r"there is no API key, and 10\.1\.2\.3 is not loopback"):
            await came_to("10.1.2.3", "/v1/models")
        assert (await came_to("10.1.2.3", "/health")).status == 200
        assert (await came_to("127.0.0.5", "/v1/models")).status == 200


async def test_the_last_key_stays_while_the_server_is_open_to_others(tmp_path: Path) -> None:
    """Another one, loopback or the setting have to come first."""
    text = CONFIG + '[http]\nhost = "0.0.0.0"\n'
    async with running_plane(Home(tmp_path), text=text) as plane, await plane.connect() as client:
        await client.ask("apikey.create", name="a")
        await client.ask("apikey.create", name="b")
        await client.ask("apikey.revoke", name="a")
        error = await client.refused("apikey.revoke", name="b")
        assert (error["code"], "'b' is the last API key" in error["msg"]) == ("in_use", True)
        await client.ask("settings.set", changes={"http.host": "127.0.0.1"})
        assert not (await client.ask("apikey.revoke", name="b"))["is_required"]


async def test_the_last_key_stays_while_the_server_still_listens_elsewhere(tmp_path: Path) -> None:
    """The setting says where it is to listen; an address that cannot be had leaves it where it was."""
    async with running_plane(Home(tmp_path), text=CONFIG) as plane, await plane.connect() as client:
        plane.http = HttpState("http://0.0.0.0:6593", "port 1 on 127.0.0.1 is taken", is_loopback=False)
        await client.ask("apikey.create", name="a")
        error = await client.refused("apikey.revoke", name="a")
        assert (error["code"], "the server listens on http://0.0.0.0:6593" in error["msg"]) == ("in_use", True)
        plane.http = HttpState("http://127.0.0.1:6593", None)
        assert not (await client.ask("apikey.revoke", name="a"))["is_required"]
