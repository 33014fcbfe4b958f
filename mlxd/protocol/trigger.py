"""The local failures for which a `fallback` rule may send a request to the cloud; each is the code of its error."""

from __future__ import annotations

# On unless a rule says otherwise: the machine could not answer, and the client can do nothing about it.
DEFAULT_TRIGGERS = (
    "does_not_fit", "queue_full", "queue_timeout", "load_timeout", "load_failed", "oom", "template_failed", "error"
)  # fmt: skip
# A typo must not spend money, and a prompt that is too long here may be meant to stay: these are asked for by name.
OPTIONAL_TRIGGERS = ("model_not_found", "context_length_exceeded", "first_token_timeout")
TRIGGERS = DEFAULT_TRIGGERS + OPTIONAL_TRIGGERS
