"""Foreign exceptions become ours here, once, at the engine's edge. Words only: a traceback would keep arrays alive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mlxd.protocol.errors import GenerationFailed, LoadFailed, MlxdError, OutOfMemory

# As MLX words it: the allocator's message, and Metal's command buffers.
_OUT_OF_MEMORY = ("unable to allocate", "insufficient memory", "out of memory", "attempting to allocate")
_MOST_CHARACTERS = 300


def in_words(error: BaseException) -> str:
    """Return what happened, short and without a traceback."""
    if isinstance(error, MlxdError):
        return error.message
    text = " ".join(str(error).split())
    if len(text) > _MOST_CHARACTERS:
        text = text[:_MOST_CHARACTERS] + " …"
    return (
        text if isinstance(error, (ValueError, RuntimeError, OSError)) and text else f"{type(error).__name__}: {text}"
    )


def is_fault(error: BaseException) -> bool:
    """Tell what a library raises from what ends a thread: a panic of the tokenizers, in Rust, is no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextlib.contextmanager
def tokenizing(model_id: str) -> Iterator[None]:
    """Say whose tokenizer failed: it came with the model, and may panic or raise at one text and not at others.

    Raises:
        GenerationFailed: it did.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, MlxdError) or not is_fault(error):
            raise
        raise GenerationFailed(f"model '{model_id}': its tokenizer fails at this text: {in_words(error)}") from error


def load_failure(model_id: str, error: BaseException) -> MlxdError:
    """Return the error of a load that ended with *error*."""
    if is_out_of_memory(error):
        return OutOfMemory(f"model '{model_id}': out of memory while loading: {in_words(error)}")
    hint = error.hint if isinstance(error, MlxdError) else None
    return LoadFailed(f"model '{model_id}' cannot be loaded: {in_words(error)}", hint=hint)


def generation_failure(model_id: str, error: BaseException) -> MlxdError:
    """Return the error of the sequences that ran when a step ended with *error*."""
    if isinstance(error, MlxdError):
        return error
    if is_out_of_memory(error):
        return OutOfMemory(f"model '{model_id}': out of memory while answering: {in_words(error)}")
    return GenerationFailed(f"model '{model_id}' failed while answering: {in_words(error)}")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an allocation that failed from other failures."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(part in text for part in _OUT_OF_MEMORY)
