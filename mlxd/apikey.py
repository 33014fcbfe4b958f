"""API keys for TCP: who may call, for which models, how often. Owns `apikeys.json`; lives on the event loop.

The file holds salted SHA-256 hashes. A slow hash guards passwords, which people choose and others guess; these keys are
256 random bits, which nobody guesses at any speed, and are checked at every request. It is no settings file, and no
rollback of the settings brings a revoked key back.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from mlxd.atomic_file import AtomicFile
from mlxd.glob import compile_globs
from mlxd.protocol.errors import (
    CommitFailed,
    FileInvalid,
    Forbidden,
    InUse,
    InvalidRequest,
    NotFound,
    RateLimited,
    Unauthenticated,
)

MOST_KEYS = 256  # each is compared at every request
_MOST_PATTERNS = 100
_SCHEMA = 1
_PREFIX = "mlxd-"
_SECRET_BYTES = 32
_SALT_BYTES = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RATE = re.compile(r"([1-9][0-9]{0,6})/(s|min|h|d)")
_PERIODS_S = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rate:
    """So many requests in a period, the whole number of them at once if there were none before."""

    requests: int
    period: str  # s, min, h or d

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Return what `60/min` stands for.

        Raises:
            InvalidRequest: it is no rate.
        """
        found = _RATE.fullmatch(text)
        if found is None:
            raise InvalidRequest(
                f"the rate {text[:40]!r} is not NUMBER/PERIOD, with s, min, h or d for the period, such as 60/min",
                param="rate",
            )
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.requests}/{self.period}"

    @property
    def per_s(self) -> float:
        """Requests a second."""
        return self.requests / _PERIODS_S[self.period]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, without the secret, which nobody has but its client."""

    name: str
    salt: str
    digest: str
    created_at_ms: int
    models: tuple[str, ...] = ()  # globs; none allows all
    rate: Rate | None = None
    _globs: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compile the globs; ValueError when one is none."""
        object.__setattr__(self, "_globs", compile_globs(self.models))

    def permits(self, *names: str) -> bool:
        """Return whether a model that goes by these names may be asked for."""
        return not self.models or any(self._globs.fullmatch(name) is not None for name in names)

    def require(self, *names: str) -> None:
        """Pass if the model may be asked for.

        Raises:
            Forbidden: it may not.
        """
        if not self.permits(*names):
            raise Forbidden(
                f"the API key {self.name!r} is not allowed to use {names[0]!r}, only {', '.join(self.models)}",
                hint="GET /v1/models",
                param="model",
                code="model_not_allowed",
            )

    def render(self) -> dict[str, Any]:
        """Return what stands in the file."""
        return {
            "name": self.name,
            "salt": self.salt,
            "sha256": self.digest,
            "created_at_ms": self.created_at_ms,
            "models": list(self.models),
            "rate": None if self.rate is None else str(self.rate),
        }

    @classmethod
    def parse(cls, read: dict[str, Any]) -> ApiKey:
        """Return the key; ValueError, TypeError, KeyError or InvalidRequest when it is none."""
        salt, digest = bytes.fromhex(read["salt"]), bytes.fromhex(read["sha256"])
        if len(digest) != hashlib.sha256().digest_size or not isinstance(read["models"], list):
            raise ValueError("no key")
        return cls(
            name=_checked_name(read["name"]),
            salt=salt.hex(),
            digest=digest.hex(),
            created_at_ms=int(read["created_at_ms"]),
            models=_checked_models(read["models"]),
            rate=None if read["rate"] is None else Rate.parse(read["rate"]),
        )


@dataclass(slots=True)
class _Bucket:
    """What is left of a key's rate."""

    tokens: float
    at_s: float


@dataclass(slots=True)
class _Use:
    """What a key was used for since the daemon's start."""

    requests: int = 0
    last_ms: int | None = None
    bucket: _Bucket | None = None


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """A key as lists show it."""

    key: ApiKey
    requests: int  # since the daemon's start
    last_used_at_ms: int | None


@dataclass(slots=True)
class ApiKeys:
    """All keys.

    Attributes:
        file: where they are kept.
        monotonic: the clock of the rates, in seconds.
        now: unix time.
        boot_token: lets the owner's own tools in, as it is only told on the control socket; another one at each boot.
        problem: why the file cannot be used; until it is fixed nobody is let in.
    """

    file: AtomicFile
    monotonic: Callable[[], float]
    now: Callable[[], float] = time.time
    boot_token: str = field(default_factory=lambda: secrets.token_urlsafe(_SECRET_BYTES), repr=False)
    problem: FileInvalid | None = None
    _keys: dict[str, ApiKey] = field(default_factory=dict)
    _uses: dict[str, _Use] = field(default_factory=dict)

    async def open(self) -> Self:
        """Read the file; what is wrong with it is in `problem`."""
        try:
            data = (await asyncio.to_thread(self.file.read)).data
            if data is not None:
                self._keys = _parse(data)
        except (OSError, ValueError, KeyError, TypeError, InvalidRequest) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no list of API keys"
            self.problem = FileInvalid(
                f"{self.file.path} cannot be used ({reason}); no HTTP request is let in",
                hint=f"fix or delete {self.file.path}, then mlxctl restart; deleting it takes all keys away",
                code="apikeys.file_invalid",
            )
        return self

    @property
    def is_required(self) -> bool:
        """Whether requests need a key: there is one, or nobody can tell."""
        return bool(self._keys) or self.problem is not None

    def list(self) -> tuple[KeyStatus, ...]:
        """Return the keys by name."""
        shown = ((key, self._uses.get(name, _Use())) for name, key in sorted(self._keys.items()))
        return tuple(KeyStatus(key, use.requests, use.last_ms) for key, use in shown)

    async def create(self, name: str, models: Sequence[str], rate: str | None) -> tuple[ApiKey, str]:
        """Return a new key and its secret, which is nowhere else from now on.

        Raises:
            InvalidRequest: a name, pattern or rate that is none.
            InUse: there is a key of that name, or there are `MOST_KEYS`.
            FileInvalid: what stands in the file would be lost.
            CommitFailed: it cannot be written.
        """
        self._require_file()
        if _checked_name(name) in self._keys:
            raise InUse(f"there is an API key {name!r} already", hint=f"mlxctl apikey revoke {name}", param="name")
        if len(self._keys) >= MOST_KEYS:
            raise InUse(f"there are {MOST_KEYS} API keys, and no more can be kept", hint="mlxctl apikey revoke NAME")
        secret = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        salt = secrets.token_bytes(_SALT_BYTES)
        key = ApiKey(
            name=name,
            salt=salt.hex(),
            digest=_digest(salt, secret).hex(),
            created_at_ms=int(self.now() * 1000),
            models=_checked_models(models),
            rate=None if rate is None else Rate.parse(rate),
        )
        await self._save({**self._keys, name: key})
        return key, secret

    def get(self, name: str) -> ApiKey:
        """Return a key.

        Raises:
            NotFound: there is none.
        """
        if name not in self._keys:
            raise NotFound(f"there is no API key {name[:80]!r}", hint="mlxctl apikey list", param="name")
        return self._keys[name]

    async def revoke(self, name: str) -> ApiKey:
        """Take a key away; it is refused from the moment that this returns.

        Raises:
            NotFound: there is none.
            FileInvalid: what stands in the file would be lost.
            CommitFailed: it cannot be written; the key still holds.
        """
        self._require_file()
        key = self.get(name)
        await self._save({other: kept for other, kept in self._keys.items() if other != name})
        self._uses.pop(name, None)
        return key

    def authenticate(self, secret: str | None) -> ApiKey | None:
        """Return the key that *secret* is; None for the owner's tools, and for everybody while there are no keys.

        Raises:
            Unauthenticated: it is none of them.
            FileInvalid: nobody can tell.
        """
        if not self.is_required:
            return None
        given = "" if secret is None else secret
        if hmac.compare_digest(given.encode(errors="replace"), self.boot_token.encode()):
            return None
        self._require_file()
        found = None
        for key in self._keys.values():  # all of them: how long it takes tells nothing
            if hmac.compare_digest(_digest(bytes.fromhex(key.salt), given), bytes.fromhex(key.digest)):
                found = key
        if found is None:
            what = "this API key is not known" if given else "an API key is needed"
            raise Unauthenticated(
                f"{what}; send one as `Authorization: Bearer KEY` or `x-api-key: KEY`", hint="mlxctl apikey create NAME"
            )
        use = self._uses.setdefault(found.name, _Use())
        use.requests += 1
        use.last_ms = int(self.now() * 1000)
        return found

    def spend(self, key: ApiKey) -> None:
        """Count one request against the key's rate.

        Raises:
            RateLimited: there were too many.
        """
        if key.rate is None:
            return
        now_s = self.monotonic()
        use = self._uses.setdefault(key.name, _Use())
        if use.bucket is None:
            use.bucket = _Bucket(key.rate.requests, now_s)
        bucket = use.bucket
        bucket.tokens = min(key.rate.requests, bucket.tokens + (now_s - bucket.at_s) * key.rate.per_s)
        bucket.at_s = now_s
        if bucket.tokens < 1:
            wait_s = (1 - bucket.tokens) / key.rate.per_s
            raise RateLimited(
                f"the API key {key.name!r} may send {key.rate}; the next request is let in in {wait_s:.1f} s",
                retry_after_s=wait_s,
            )
        bucket.tokens -= 1

    def _require_file(self) -> None:
        if self.problem is not None:
            raise self.problem

    async def _save(self, keys: dict[str, ApiKey]) -> None:
        document = {"schema": _SCHEMA, "keys": [key.render() for key in keys.values()]}
        data = (json.dumps(document, indent=1) + "\n").encode()
        try:
            await asyncio.to_thread(self._write, data)
        except OSError as error:
            raise CommitFailed(f"{self.file.path} cannot be written: {error.strerror}; nothing is changed") from error
        self._keys = keys

    def _write(self, data: bytes) -> None:
        staged = self.file.stage(data)
        try:
            staged.commit()
        finally:
            staged.discard()
        try:
            self.file.sync_folder()
        except OSError as error:
            _log.warning("%s is written, but a power cut might undo that: %s", self.file.path, error.strerror)


def _parse(data: bytes) -> dict[str, ApiKey]:
    read = json.loads(data)
    if read["schema"] != _SCHEMA:
        raise ValueError("another version's")
    return {key.name: key for key in map(ApiKey.parse, read["keys"])}


def _digest(salt: bytes, secret: str) -> bytes:
    return hashlib.sha256(salt + secret.encode(errors="replace")).digest()


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"the name {str(name)[:80]!r} is not made of 1 to 64 letters, digits, dots, dashes and underscores, "
            "a letter or digit first",
            param="name",
        )
    return name


def _checked_models(models: Sequence[Any]) -> tuple[str, ...]:
    if len(models) > _MOST_PATTERNS:
        raise InvalidRequest(f"{len(models)} models are named, and a key can have {_MOST_PATTERNS}", param="models")
    try:
        compile_globs(models)
    except ValueError as error:
        raise InvalidRequest(f"models: {error}", param="models") from None
    return tuple(dict.fromkeys(models))
