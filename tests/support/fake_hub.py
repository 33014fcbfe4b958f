"""A server on a real socket with the routes of the Hugging Face hub that a download uses, and with faults to order."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

COMMIT = "1" * 40
# The real hub keeps weights apart, on another host, where no token may be sent.
_LFS_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came in."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Repository:
    """A model on the fake hub."""

    files: Mapping[str, bytes]
    gated: bool = False
    token: str | None = None  # None: for everybody
    revisions: Mapping[str, str] = field(default_factory=lambda: {"main": COMMIT})
    claimed_bytes: int | None = None  # what the listing says of the weights instead of the truth


class FakeHub:
    """Runs in a thread of its own; use as a context manager, and `url` as HF_ENDPOINT."""

    def __init__(self, repositories: Mapping[str, Repository]) -> None:
        self.repositories = dict(repositories)
        self.seen: list[Seen] = []
        self.valid_tokens = {"good"}
        self.status: int | None = None  # answers everything with it
        self.cuts: list[int] = []  # each of the next transfers of weights breaks off after so many bytes
        self.reset = False  # by a reset instead of an early end
        self.spoils: tuple[str, ...] = ()  # what is sent of files with these endings has another last byte
        self.digests: dict[str, str] = {}  # what the listing says of weights instead of the truth
        self.holds_after_bytes: int | None = None  # transfers of weights stand still there
        self._released = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._port = 0

    @property
    def url(self) -> str:
        """The address of the hub itself."""
        return f"http://127.0.0.1:{self._port}"

    def ranges(self) -> list[str | None]:
        """Return the Range headers of the transfers of weights, in order."""
        return [seen.range for seen in self.seen if seen.path.startswith("/cdn/") and seen.method == "GET"]

    def __enter__(self) -> Self:
        self._thread.start()
        self._runner = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._released.set)
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        application = web.Application()
        application.router.add_get("/cdn/{sha}", self._cdn)
        application.router.add_get("/portal/{rest:.*}", self._portal)
        application.router.add_get("/api/models", self._search)
        application.router.add_get(r"/api/models/{name:[^/]+/[^/]+}", self._info)
        application.router.add_get(r"/api/models/{name:[^/]+/[^/]+}/revision/{revision}", self._info)
        application.router.add_get(r"/api/models/{name:[^/]+/[^/]+}/tree/{revision}", self._tree)
        application.router.add_get(r"/{name:[^/]+/[^/]+}/resolve/{revision}/{path:.+}", self._resolve)
        runner = web.AppRunner(application, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._port = runner.addresses[0][1]
        return runner

    def _find(self, request: web.Request) -> tuple[Repository, str]:
        """Return the repository and the commit, or answer as the hub does when there is none for this client."""
        self._note(request)
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.valid_tokens:
            raise _refusal(401, message="Invalid credentials in Authorization header")
        repository = self.repositories.get(request.match_info["name"])
        if repository is None or (repository.token is not None and token != repository.token):
            # Who is not logged in is not told which repositories there are.
            raise _refusal(404, "RepoNotFound", "Repository not found") if token else _refusal(401)
        revision = request.match_info.get("revision", "main")
        if revision not in repository.revisions and revision not in repository.revisions.values():
            raise _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, repository.revisions.get(revision, revision)

    def _note(self, request: web.Request) -> None:
        headers = request.headers
        self.seen.append(Seen(request.method, request.path, headers.get("Range"), headers.get("Authorization")))
        if self.status is not None:
            raise _refusal(self.status)

    async def _info(self, request: web.Request) -> web.Response:
        _, commit = self._find(request)
        return web.json_response({"id": request.match_info["name"], "sha": commit, "siblings": [], "tags": []})

    async def _portal(self, request: web.Request) -> web.Response:
        """Answer everything as the log-in page of a hotel does."""
        return web.Response(text="<html>Welcome</html>", content_type="text/html")

    async def _search(self, request: web.Request) -> web.Response:
        self._note(request)
        wanted = request.query["search"].lower()
        return web.json_response([{"id": name} for name in self.repositories if wanted[:4] in name.lower()])

    async def _tree(self, request: web.Request) -> web.Response:
        repository, _ = self._find(request)
        entries = [_tree_entry(path, content) for path, content in repository.files.items()]
        for entry in entries:
            if entry["path"] in self.digests:
                entry["lfs"]["oid"] = self.digests[entry["path"]]
            if "lfs" in entry and repository.claimed_bytes is not None:
                entry["size"] = entry["lfs"]["size"] = repository.claimed_bytes
        return web.json_response(entries)

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        repository, commit = self._find(request)
        if repository.gated:
            status = 403 if "Authorization" in request.headers else 401
            raise _refusal(status, "GatedRepo", "Access to this model is restricted.")
        path = request.match_info["path"]
        content = repository.files[path]
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not path.endswith(_LFS_SUFFIX):
            headers["ETag"] = f'"{_git_digest(content)}"'
            return web.Response(body=self._spoilt(path, content), headers=headers)
        sha = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha}"'}
        # Another name for the same address makes it another host to the client.
        headers["Location"] = f"http://localhost:{self._port}/cdn/{sha}"
        return web.Response(status=302, headers=headers)

    def _spoilt(self, path: str, content: bytes) -> bytes:
        """Return the content, or as much with another last byte."""
        if not path.endswith(self.spoils):
            return content
        return content[:-1] + bytes([content[-1] ^ 1])

    async def _cdn(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        contents = (content for repository in self.repositories.values() for content in repository.files.values())
        content = next(c for c in contents if hashlib.sha256(c).hexdigest() == request.match_info["sha"])
        start = request.http_range.start or 0
        headers = {"Content-Length": str(len(content) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        rest = memoryview(self._spoilt(_LFS_SUFFIX, content))[start:]
        if self.holds_after_bytes is not None:
            await response.write(bytes(rest[: self.holds_after_bytes]))
            await self._released.wait()
            return response
        if self.cuts:
            await response.write(bytes(rest[: self.cuts.pop(0)]))
            assert request.transport is not None
            request.transport.abort() if self.reset else request.transport.close()
            return response
        await response.write(bytes(rest))
        return response


def models(weights: bytes, config: bytes) -> dict[str, Repository]:
    """Return one model of every kind that matters, all with these weights."""
    files = {
        "config.json": config,
        "model.safetensors": weights,
        "tokenizer.json": b"{}",
        "README.md": b"#",
        "evil.py": b"",
        "pytorch_model.bin": b"x",
    }
    return {
        "org/tiny": Repository(files),
        "org/gated": Repository(files, gated=True),
        "org/private": Repository(files, token="good"),
        "org/gguf-only": Repository({"tiny.gguf": b"x"}),
        "org/bert": Repository({**files, "config.json": b'{"model_type": "nomic_bert"}'}),
    }


def _git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def _tree_entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": _git_digest(content),
    }
    if path.endswith(_LFS_SUFFIX):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def _refusal(status: int, code: str | None = None, message: str = "") -> web.HTTPException:
    headers = {"X-Error-Message": message} if message else {}
    if code is not None:
        headers["X-Error-Code"] = code
    kinds = {401: web.HTTPUnauthorized, 403: web.HTTPForbidden, 404: web.HTTPNotFound, 503: web.HTTPServiceUnavailable}
    return kinds[status](headers=headers, text=json.dumps({"error": message}), content_type="application/json")
