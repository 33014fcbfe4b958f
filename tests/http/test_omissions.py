"""What a body asks for and this machine does without is named, told once per client, and may be refused."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import msgspec
import pytest

from mlxd.http.omissions import OmissionLog, Omissions
from mlxd.http.schema import omitted, read
from mlxd.protocol.errors import UnsupportedParameter
from tests.support.http_server import serving
from tests.support.scripted_pool import ScriptedPool, end

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


class Asked(msgspec.Struct):
    """A body with one field."""

    verbosity: Annotated[Any, omitted("medium")] = None


def test_a_documented_field_is_left_out_by_name_but_for_values_that_change_nothing() -> None:
    """Null and a neutral value are as good as nothing; any other is named."""
    for body, expected in (
        ({"verbosity": "low"}, ["verbosity"]),
        ({"verbosity": "medium"}, []),
        ({"verbosity": None}, []),
    ):
        omissions = Omissions("m")
        assert read(Asked, body, omissions) == Asked()
        assert expected == list(omissions.names)


def test_an_omission_is_refused_where_fields_are() -> None:
    """http.unknown_fields = "reject" names the field, and says what to do."""
    with pytest.raises(UnsupportedParameter, match="verbosity is not supported; leave it out") as refused:
        read(Asked, {"verbosity": "low"}, Omissions("m", rejects_fields=True))
    assert refused.value.param == "verbosity"


@pytest.mark.parametrize(("kind", "words"), [("image", "an image"), ("audio", "audio"), ("file", "a file")])
def test_media_become_a_note_or_are_refused(kind: str, words: str) -> None:
    """The note says what was there and why the model does not have it; http.media = "reject" makes it an error."""
    omitted = Omissions("org/m")
    assert omitted.leave_out_media("messages[0].content[1]", kind) == f"[{kind} omitted: org/m reads text only]"
    assert list(omitted.names) == ["messages[0].content[1]"]
    with pytest.raises(UnsupportedParameter, match=f"holds {words}, and model 'org/m' reads text only"):
        Omissions("org/m", rejects_media=True).leave_out_media("messages[0].content[1]", kind)


def test_a_client_is_told_once_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The place in a list makes no new omission; another client and another field do."""
    log = OmissionLog()
    with caplog.at_level(logging.WARNING, logger="mlxd.http.omissions"):
        log.tell("codex_cli/0.171", ["tools[7]", "tools[9]", "verbosity"])
        log.tell("codex_cli/0.172", ["tools[8]", "verbosity"])
        log.tell("codex_cli/0.172", [])
        log.tell("claude-cli/2.1", ["verbosity"])
        log.tell(None, ["verbosity"])
    assert [record.args for record in caplog.records] == [
        ("codex_cli", "tools[], verbosity"),
        ("claude-cli", "verbosity"),
        ("a client without a User-Agent", "verbosity"),
    ]


async def test_what_is_left_out_stands_in_the_header_and_in_the_request_log() -> None:
    """The audit row has the names that the answer's header has; a request without omissions has none."""
    async with serving(ScriptedPool(end())) as served:
        _, headers, _ = await served.post("/v1/chat/completions", BODY | {"top_a": 1, "colour": 2})
        assert headers["x-mlxd-ignored-fields"] == "top_a, colour"
        assert served.rows[-1].ignored == ("top_a", "colour")
        await served.post("/v1/chat/completions", BODY)
        assert served.rows[-1].ignored is None
