"""Reading a provider's key through its reference. The value is never logged, and stands in no message."""

from __future__ import annotations

from collections.abc import Mapping

from mlxd.protocol.errors import SecretMissing


def read_secret(provider_id: str, auth: Mapping[str, str] | None, environ: Mapping[str, str]) -> str | None:
    """Return the key, or None for a provider without one.

    Raises:
        SecretMissing: the variable is unset or empty in the daemon's environment, or holds what no header may carry.
    """
    if auth is None:
        return None
    name = auth["env"]
    secret = environ.get(name, "").strip()
    if not secret:
        raise SecretMissing(
            f"the key of provider {provider_id!r} is missing: {name} is not set in the environment of mlxd",
            hint=f"set {name} and run mlxctl restart",
        )
    if not secret.isascii() or not secret.isprintable():
        raise SecretMissing(f"the key of provider {provider_id!r} in {name} holds characters that no header may carry")
    return secret
