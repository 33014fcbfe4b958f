"""Read the config of an encoder without mlx: whether it is one, its context, its workspace."""

from __future__ import annotations

from mlxd.engine.config import Config, as_size
from mlxd.engine.kv_shape import KvShape

PACKAGE = "mlx_embeddings"
INSTALL = "pip install 'mlxd[embeddings]' && mlxctl restart"
# Model types that make vectors, not text. Which of them run is what the installed mlx-embeddings has a file for.
ENCODER_TYPES = frozenset(
    {"bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "modernbert", "nomic_bert", "albert", "camembert"}
)
# Their positions begin after the padding token's, so that the first two of the table are never used.
_OFFSET_POSITIONS = {"roberta": 2, "xlm-roberta": 2, "camembert": 2}
_ITEMSIZE = 4  # masks are float32, and what passes through them is


def context_tokens(config: Config) -> int | None:
    """Return the most tokens of one text; None where the config does not say."""
    positions = as_size(config.get("max_position_embeddings"))
    if positions is None:
        return None
    return as_size(positions - _OFFSET_POSITIONS.get(str(config.get("model_type")), 0))


def workspace(config: Config) -> KvShape:
    """Return what one text takes while it passes through one layer; the layers take turns with it.

    Per token eight vectors of the residual stream's width and four of the feed-forward's; per pair of tokens two
    numbers for each head (scores, probabilities). Measured on MiniLM it is two thirds of that.
    """
    width = _size(config, "hidden_size", 1024)
    per_token = _ITEMSIZE * (8 * width + 4 * _size(config, "intermediate_size", 4 * width))
    return KvShape(((per_token, None),), square_bytes=2 * _ITEMSIZE * _size(config, "num_attention_heads", 16))


def _size(config: Config, key: str, default: int) -> int:
    size = as_size(config.get(key))
    return default if size is None else size
