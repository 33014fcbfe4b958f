"""The prompt cache of one model: mlx-lm's `LRUPromptCache`, bounded in bytes. Used on the device thread only."""

from __future__ import annotations

from typing import Any

from mlx_lm.models.cache import (
    LRUPromptCache,
    PromptTrie,
    PromptTrieResult,
    can_trim_prompt_cache,
    trim_prompt_cache,
)

from mlxd.engine.kv import cut_to_length, detach

# `LRUPromptCache` is keyed by model; here every model has one of its own.
_MODEL = 0
# Bytes are the bound; mlx-lm's own default is 10 entries.
_MOST_ENTRIES = 1_000_000


class PromptCache:
    """KV of past sequences by their tokens."""

    def __init__(self, max_bytes: int) -> None:
        """Keep at most *max_bytes*; 0 keeps nothing."""
        self._cache = LRUPromptCache(max_size=_MOST_ENTRIES, max_bytes=max_bytes)
        self._cache._trie = _Trie()  # noqa: SLF001 the class has no other way in

    @property
    def max_bytes(self) -> int:
        """The bound."""
        return int(self._cache.max_bytes)

    @property
    def stored_bytes(self) -> int:
        """Bytes of KV in it."""
        return int(self._cache.nbytes)

    def fetch(self, tokens: list[int]) -> tuple[list[Any] | None, int]:
        """Return a copy of the KV of the longest known prefix, and its length; at least one token is left over."""
        cache, rest = self._cache.fetch_nearest_cache(_MODEL, tokens)
        if cache is None:
            return None, 0
        if not rest:  # known to its last token: the model needs one to go on from
            if not can_trim_prompt_cache(cache) or len(tokens) == 1:
                return None, 0
            trim_prompt_cache(cache, 1)
            return cache, len(tokens) - 1
        return cache, len(tokens) - len(rest)

    def store(self, tokens: list[int], cache: list[Any]) -> None:
        """Keep the KV of *tokens* if it fits the bound; the least recently stored make room."""
        cut_to_length(cache)
        cache_bytes = sum(part.nbytes for part in cache)
        if not tokens or cache_bytes > self._cache.max_bytes:
            return
        detach(cache)
        self._cache.insert_cache(_MODEL, list(tokens), cache)

    def set_limit(self, max_bytes: int) -> None:
        """Bound it from now on, and shrink it when it is over."""
        self._cache.max_bytes = max_bytes
        self.trim(max_bytes)

    def trim(self, max_bytes: int) -> None:
        """Shrink it to *max_bytes* once."""
        self._cache.trim_to(n_bytes=max_bytes)


class _Trie(PromptTrie):  # type: ignore[misc]
    """mlx-lm's trie with a search in linear time.

    The original copies a list for each token that a stored sequence runs past the match: 0.9 s at 32k tokens.
    """

    def search(self, model: Any, tokens: list[int]) -> PromptTrieResult:
        """Return what the original returns."""
        node = self._trie.get(model, {})
        matched = 0
        shorter = 0
        for token in tokens:
            if token not in node:
                break
            node = node[token]
            matched += 1
            if "__value__" in node:
                shorter = matched
        if matched == 0:
            return PromptTrieResult(model, None, None, None, 0)
        if shorter == len(tokens):
            return PromptTrieResult(model, tokens, None, None, 0)
        longer = tokens[:matched] + _shortest_extension(node)
        return PromptTrieResult(model, None, tokens[:shorter] if shorter else None, longer, matched)


def _shortest_extension(root: dict[Any, Any]) -> list[int]:
    """Return the fewest tokens that lead from *root* to a stored sequence."""
    level: list[tuple[dict[Any, Any], Any]] = [(root, None)]
    while level:
        below = []
        for node, path in level:
            if "__value__" in node:
                tokens: list[int] = []
                while path is not None:
                    token, path = path  # noqa: PLW2901 walks up to the root
                    tokens.append(token)
                return tokens[::-1]
            below += [(child, (token, path)) for token, child in node.items()]
        level = below
    return []
