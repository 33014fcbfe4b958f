"""Status, ps, pool and model as text: golden outputs."""

from __future__ import annotations

from typing import Any

import pytest

from mlxctl import activity, view
from tests.support.status_document import GB, MEMORY, model_document

MODELS = [
    model_document(),
    model_document(id="busy", running=2, paused=1, waiting=3, leases=3, pinned=True, expires_in_s=None),
    model_document(id="coming", state="loading", load_done_bytes=GB, load_total_bytes=4 * GB, preload=True, kv_bytes=0),
    model_document(id="broken", state="failed", last_error="no tokenizer", weights_bytes=0, kv_bytes=0),
    model_document(id="going", state="draining", running=1, leases=1, reason="pool.memory was lowered"),
    model_document(id="kept", expires_in_s=None, preload=True),
]
POOL = {"memory": MEMORY, "over_limit": None, "max_models": 2, "models": MODELS, "queue": [], "preload": []}
WAIT = {"request_id": "req-9", "model": "coming", "waited_s": 75.0, "reason": "coming is loading: 25 %"}
STATUS = [
    "mlxd 0.1.0, pid 4711, up 2h3m",
    "",
    "http:     http://127.0.0.1:6593/v1",
    "memory:   18.0 GB (16.8 GiB) of 24.0 GB (22.4 GiB)",
    "models:   1 loaded of at most 2",
    "requests: 1 running, 0 waiting",
    "cloud:    off, 1 provider, 2 rules",
    "settings: /home/ada/.mlxd/config.toml, generation 12",
    "problem: port 6593 is taken; mlxctl config set http.port 6594",
    "",
    "MODEL    STATE              MEMORY  RUNNING  WAITING  EXPIRES  NOTE",
    "org/big  ready  17.0 GB (15.8 GiB)        0        0  in 25m   -",
]
POOL_LINES = [
    "limit:           24.0 GB (22.4 GiB)",
    "reserved:        18.0 GB (16.8 GiB)",
    "  weights:       16.0 GB (14.9 GiB)",
    "  KV:            1.0 GB (0.9 GiB)",
    "  prompt caches: 400.0 MB (381.5 MiB)",
    "  grammars:      100.0 MB (95.4 MiB)",
    "  loading:       0 B",
    "  margin:        500.0 MB (476.8 MiB)",
    "free:            6.0 GB (5.6 GiB)",
    "pinned:          0 B",
    "models:          0 loaded of at most 2",
    "waiting:         1 request",
    "",
    "WAITING  MODEL     FOR  REASON",
    "req-9    coming  1m15s  coming is loading: 25 %",
]
MODEL_LINES = [
    "MODEL  STATE  KIND               WEIGHTS  CONTEXT  QUANTIZATION  SOURCE       NOTE",
    "tiny   ready  text  270.0 MB (257.5 MiB)     8192  -             mlxd         pinned",
    "org/x  -      -                      0 B        -  -             huggingface  a shard is missing",
]


def test_models_golden() -> None:
    """A line for each resident: what it holds, who uses it, when it goes, and why it is in its state."""
    assert view.format_ps({"models": MODELS}).splitlines() == [
        "MODEL    STATE                 MEMORY  RUNNING  WAITING  EXPIRES  NOTE",
        "org/big  ready     17.0 GB (15.8 GiB)        0        0  in 25m   -",
        "busy     ready     17.0 GB (15.8 GiB)        3        3  -        1 sequence paused; pinned",
        "coming   loading   16.0 GB (14.9 GiB)        0        0  -        25 % loaded",
        "broken   failed                   0 B        0        0  -        no tokenizer",
        "going    draining  17.0 GB (15.8 GiB)        1        0  -        pool.memory was lowered",
        "kept     ready     17.0 GB (15.8 GiB)        0        0  never    preload",
    ]


def test_ps_shows_requests_and_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running requests, waiting ones with their reason, and operations follow the models, each where there are any."""
    monkeypatch.setattr("mlxctl.activity.time.time", lambda: 1000.0)
    request = {"id": "req-1", "model": "org/big", "route": "local", "state": "answering", "endpoint": "/v1/completions"}
    operation = {"op": "op-3", "kind": "model.load", "phase": "loading", "done": 1, "total": 4}

    assert view.format_ps(
        {
            "models": [],
            "requests": [{**request, "started_at_ms": 995_000, "completion_tokens": 7}],
            "queue": [WAIT],
            "operations": [operation],
        }
    ).splitlines() == [
        "no model is loaded",
        "",
        "REQUEST  MODEL    ROUTE  STATE      TOKENS  ENDPOINT         AGE",
        "req-1    org/big  local  answering       7  /v1/completions   5s",
        "",
        "WAITING  MODEL     FOR  REASON",
        "req-9    coming  1m15s  coming is loading: 25 %",
        "",
        "OPERATION  KIND        PHASE    DONE",
        "op-3       model.load  loading  25 %",
    ]


def test_request_with_a_place_is_not_called_waiting() -> None:
    """Without a text, a request waits while it is in the queue or an upstream has it, and is in its prefill else."""
    request = {"model": "a", "state": "waiting", "endpoint": "/v1/completions", "started_at_ms": 0}
    requests = [
        {**request, "id": "req-9", "route": "local"},
        {**request, "id": "req-10", "route": "local"},
        {**request, "id": "req-11", "route": "cloud"},
    ]
    lines = view.format_ps({"models": [], "requests": requests, "queue": [WAIT]}).splitlines()
    assert [line.split()[3] for line in lines[3:6]] == ["waiting", "prefill", "waiting"]


def test_status_golden() -> None:
    """Everything at a glance: process, sockets, memory in both units, counts, settings, problems, residents."""
    document = {
        "version": "0.1.0",
        "pid": 4711,
        "uptime_ms": 7_384_000,
        "gen": 12,
        "config": {"path": "/home/ada/.mlxd/config.toml", "problem": None},
        "http": {"url": "http://127.0.0.1:6593", "problem": None},
        "pool": {**POOL, "models": MODELS[:1]},
        "requests": [{}],
        "cloud": {"enabled": False, "providers": 1, "rules": 2},
        "problems": ["port 6593 is taken; mlxctl config set http.port 6594"],
    }

    assert view.format_status(document).splitlines() == STATUS
    assert "over limit: draining busy" in view.format_status(
        {**document, "pool": {**POOL, "over_limit": "draining busy (2 requests, 31 s)"}}
    )
    budget: dict[str, Any] = {"usd_per_day_micro": 2_500_000, "spent_micro": 400_000, "reserved_micro": 100_000}
    budget |= {"requests_per_day": 100, "requests": 7}
    cloud = {"enabled": True, "providers": 1, "rules": 1}
    assert "on, 1 provider, 1 rule, 0.50 of 2.5 USD today, 7 of 100 requests today\n" in view.format_status(
        {**document, "cloud": {**cloud, "budget": budget}}
    )
    free = {**budget, "usd_per_day_micro": None, "requests_per_day": None}
    assert "on, 1 provider, 1 rule\n" in view.format_status({**document, "cloud": {**cloud, "budget": free}})


def test_pool_golden() -> None:
    """The ledger, what the limit is, and who waits for what."""
    assert view.format_pool({**POOL, "models": [], "queue": [WAIT]}).splitlines() == POOL_LINES


def test_the_ledger_of_each_model_names_all_its_parts() -> None:
    """Grammars have a column beside the prompt cache, and count as memory of the model."""
    parts = {"kv_confidence": "measured", "margin_bytes": 0, "prompt_cache_bytes": GB // 2, "grammar_bytes": GB // 4}
    model = model_document(reserved_bytes=17 * GB + 3 * GB // 4, **parts)
    heads, row = view.format_pool({**POOL, "models": [model], "queue": []}).split("\n\n")[-1].splitlines()
    assert heads[row.index("250.0 MB") :].split()[:2] == ["GRAMMARS", "MARGIN"]
    assert view.memory_bytes(model) == 17 * GB + 3 * GB // 4


def test_queue_golden() -> None:
    """Who waits, in order, with the place among those for the same model; how many there are and may be."""
    bounds = {"size": 256, "per_model": 64, "timeout_s": 120.0}
    waits = [{**WAIT, "position": 1, "model_position": 1}, {**WAIT, "position": 2, "model_position": 2}]
    assert activity.format_queue({**bounds, "queue": [], "waiting": 0}) == (
        "no request waits (at most 256, 64 for one model)"
    )
    assert activity.format_queue({**bounds, "queue": waits, "waiting": 3}).splitlines() == [
        "#  REQUEST  MODEL   PLACE  WAITED  REASON",
        "1  req-9    coming      1   1m15s  coming is loading: 25 %",
        "2  req-9    coming      2   1m15s  coming is loading: 25 %",
        "",
        "3 requests waiting (at most 256, 64 for one model; each for 2m at most); 2 of them shown",
    ]


def test_model_list_golden() -> None:
    """Models on disk with their state; those that cannot be served say why."""
    entry: dict[str, Any] = {
        "id": "tiny",
        "state": "ready",
        "kind": "text",
        "weights_bytes": 270_000_000,
        "context_length": 8192,
        "source": "mlxd",
    }
    broken = {
        "id": "org/x",
        "state": None,
        "weights_bytes": 0,
        "source": "huggingface",
        "problem": "a shard is missing",
    }

    assert view.format_models({"models": [{**entry, "pinned": True}, broken]}).splitlines() == MODEL_LINES
    assert view.format_models({"models": []}) == "no model on this disk; mlxctl model pull starter"


def test_model_shows_all_that_is_known() -> None:
    """One model is shown key by key, sizes in both units, without what is not known."""
    shown = view.format_model(
        {"id": "tiny", "weights_bytes": 270_000_000, "problem": None, "pinned": True, "kv": {"layers": 4}}
    )

    assert shown.splitlines() == [
        "id:      tiny",
        "weights: 270.0 MB (257.5 MiB)",
        "pinned:  yes",
        "kv:      layers 4",
    ]


def test_prompts_that_are_too_large_to_keep() -> None:
    """A model says how many there were and what to do, where there were some."""
    words = "2 prompts were too large to keep: raise engine.prompt_cache"
    assert view.note(model_document(prompts_too_large=2, pinned=True)) == f"{words}; pinned"
    assert view.note(model_document(prompts_too_large=0)) is None
    one = {"id": "tiny", "prompts_too_large": 1}
    assert view.format_model(one).splitlines() == [
        "id:                tiny",
        "prompts too large: 1 prompt was too large to keep: raise engine.prompt_cache",
    ]
    assert view.format_model({**one, "prompts_too_large": 0}) == "id: tiny"


def test_what_is_not_loaded_holds_nothing() -> None:
    """A model whose load failed has weights on the disk, not in memory."""
    assert view.memory_bytes(model_document()) == 17 * GB
    for state in ("failed", "queued", "unloaded"):
        assert view.memory_bytes(model_document(state=state)) == 0


def test_what_is_reserved_is_whole_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns the parts of a model's memory are left out before its name or its sum is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    model = model_document(
        id="smollm2-135m-instruct",
        reserved_bytes=17 * GB,
        kv_confidence="measured",
        margin_bytes=GB,
        prompt_cache_bytes=GB,
    )
    heads, row = view.format_pool({**POOL, "models": [model], "queue": []}).split("\n\n")[-1].splitlines()

    assert heads.split()[-1] == "RESERVED"
    assert row.startswith("smollm2-135m-instruct  ")
    assert "..." not in row
    assert max(len(heads), len(row)) <= 80


def test_waiting_requests_keep_their_names_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason gives way, not the request and the model: they are what the next command takes."""
    monkeypatch.setenv("COLUMNS", "80")
    request, model = "req_" + 32 * "7", "smollm2-135m-instruct"
    wait = {**WAIT, "request_id": request, "model": model, "position": 1, "model_position": 1}
    shown = activity.format_queue({"size": 256, "per_model": 64, "timeout_s": 120.0, "queue": [wait], "waiting": 1})

    assert f"{request}  {model}" in shown
