"""Answers that are bound to a grammar: compiled on worker threads, enforced token by token inside the batch.

The masks are llguidance's. A grammar binds the answer and not the thinking before it: a model that may think is free
to, and is bound from the end of its thinking on.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, cast

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLParserLimits

from mlxd.engine.answer.format import Frame, format_of
from mlxd.engine.constraint import Constraint, JsonConstraint, LarkConstraint, ToolConstraint
from mlxd.engine.fault import in_words
from mlxd.engine.lark import Lark, Unenforceable
from mlxd.engine.process import Processes
from mlxd.engine.tool_grammar import loosened_functions, tool_lark
from mlxd.engine.vocabulary import Vocabulary
from mlxd.protocol.errors import CapacityError, GenerationFailed, InvalidRequest, MlxdError
from mlxd.protocol.units import show_bytes

# Of one model. What is kept saves its making, which takes up to a second; what runs now is bounded as well.
_KEPT_BYTES = 64_000_000
_MOST_BYTES = 256_000_000
_MOST_SCHEMA_BYTES = 2**18
# Measured with llguidance 1.9: 40 to 230 bytes per byte of a schema. A pattern adds 2 kB per token that is made by it.
_LEAST_BYTES = 100_000
_BYTES_PER_BYTE = 256
_BYTES_PER_TOKEN = 4_096
# As many states of its lexer take 100 MB, and no schema that describes data comes near.
_MOST_STATES = 50_000
_SHOWN_CHARACTERS = 300
_ANY_OBJECT = '{"type":"object"}'


class Grammars:
    """The compiled grammars of one model, least recently used first, and what they take by a calibrated estimate.

    Each is compiled in a process first, which may not end, or crash: the library has bounds for most grammars only.
    """

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary, vocab_size: int, processes: Processes) -> None:
        """Take mlx-lm's `TokenizerWrapper`, its tokens, the size of the logits, and where compiling is tried."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._processes = processes
        own = format_of(tokenizer)
        self._frame: Frame | None = None if own is None else own.frame
        self._lock = threading.Lock()
        self._kept: OrderedDict[Constraint, Grammar] = OrderedDict()
        self._numbers = itertools.count()
        self._held: dict[int, int] = {}  # bytes of each that is kept, compiled, or followed by an answer

    @property
    def held_bytes(self) -> int:
        """What all that exist take, those of running answers included."""
        return sum(list(self._held.values()))  # at once: others come and go on other threads

    def trim(self, max_bytes: int) -> None:
        """Forget grammars until *max_bytes* are left, oldest first, but for those of running answers."""
        with self._lock:
            while self._kept and self.held_bytes > max_bytes:
                self._kept.popitem(last=False)

    def read_tokens(self, field: str) -> Any:
        """Return llguidance's view of the tokens; the first call may take a second.

        Raises:
            InvalidRequest: the tokenizer is of a kind that cannot be read; *field* cannot be supported.
        """
        return self._vocabulary.tokens(self._vocab_size, field)

    def compile(self, constraint: Constraint, is_given_up: Callable[[], bool] = lambda: False) -> Grammar:
        """Return the grammar of *constraint*, made now or before. For worker threads.

        Raises:
            InvalidRequest: it cannot be enforced; the message says which part of it, or which limit it is over.
            CapacityError: the grammars of running answers leave no room for it.
            RequestCancelled: it was given up.
        """
        with self._lock:
            known = self._kept.get(constraint)
            if known is not None:
                self._kept.move_to_end(constraint)
        grammar = self._compiled(constraint, is_given_up) if known is None else known
        with self._lock:
            self._held[grammar.number] = grammar.held_bytes
            self._kept[constraint] = grammar
            kept_bytes = sum(other.held_bytes for other in self._kept.values())
            while kept_bytes > _KEPT_BYTES:
                kept_bytes -= self._kept.popitem(last=False)[1].held_bytes
        return grammar

    def _compiled(self, constraint: Constraint, is_given_up: Callable[[], bool]) -> Grammar:
        if isinstance(constraint, ToolConstraint):
            return self._tool_grammar(constraint, is_given_up)
        if self._frame is not None:
            return self._checked(constraint, self._framed(constraint, self._frame), is_given_up)
        return self._checked(constraint, _grammar_text(constraint), is_given_up)

    def _framed(self, constraint: JsonConstraint | LarkConstraint, frame: Frame) -> str:
        """Return the grammar of a whole answer: the document, and what this model's format has before it."""
        if isinstance(constraint, LarkConstraint):
            raise _refused(constraint, "this model's answers have headers, which a grammar in Lark would have to know")
        try:
            lark = Lark(self._tokenizer)
            document = lark.json(json.loads(constraint.schema or _ANY_OBJECT))
        except ValueError as error:
            raise _refused(constraint, str(error)) from None
        return lark.text(frame(lark, document, None))

    def _tool_grammar(self, constraint: ToolConstraint, is_given_up: Callable[[], bool]) -> Grammar:
        """Return the grammar of calls; a schema that is not strict and cannot be enforced counts for its types."""
        functions = json.loads(constraint.functions)
        try:
            try:
                return self._enforced(constraint, is_given_up)
            except (InvalidRequest, Unenforceable):
                loose = loosened_functions(functions)
                if loose == functions:
                    raise
                return self._enforced(dataclasses.replace(constraint, functions=json.dumps(loose)), is_given_up)
        except Unenforceable as error:
            raise _refused(constraint, str(error)) from None
        except (TypeError, AttributeError, KeyError, ValueError):  # what a client calls a schema may be anything
            raise _refused(constraint, "a keyword in it has a value of the wrong type") from None

    def _enforced(self, constraint: ToolConstraint, is_given_up: Callable[[], bool]) -> Grammar:
        lark = tool_lark(self._tokenizer, constraint)
        if lark is None:
            raise InvalidRequest(
                f"{constraint.field}: the format in which this model calls tools cannot be enforced",
                hint='send tool_choice "auto", and no tool with strict: true',
                param=constraint.field,
            )
        return self._checked(constraint, lark, is_given_up)

    def _checked(self, constraint: Constraint, text: str, is_given_up: Callable[[], bool]) -> Grammar:
        if len(text) > _MOST_SCHEMA_BYTES:
            raise _refused(constraint, f"it has {len(text)} characters, and the limit is {_MOST_SCHEMA_BYTES}")
        tokens = self.read_tokens(constraint.field)
        number = next(self._numbers)
        self._make_room(number, _bytes_of(text))
        try:
            matcher = self._matcher(constraint, text, tokens, is_given_up)
        except BaseException:
            del self._held[number]
            raise
        thinks = self._frame is None  # else the thoughts are a part of the grammar
        grammar = Grammar(matcher, self._tokenizer, constraint.field, number, _bytes_of(text), thinks=thinks)
        weakref.finalize(grammar, self._held.pop, number, None).atexit = False
        return grammar

    def _matcher(self, constraint: Constraint, text: str, tokens: Any, is_given_up: Callable[[], bool]) -> LLMatcher:
        limits = {"max_lexer_states": _MOST_STATES}
        job = {"grammar": text, "limits": limits, "added": self._tokenizer.get_added_vocab()}
        reason = self._processes.rehearse(job, is_given_up)
        if reason is not None:
            raise _refused(constraint, reason)
        matcher = LLMatcher(tokens, text, log_level=0, limits=LLParserLimits(max_lexer_states=_MOST_STATES))
        if matcher.is_error():
            raise _refused(constraint, matcher.get_error())
        return matcher

    def _make_room(self, number: int, n_bytes: int) -> None:
        """Reserve *n_bytes* for a grammar; those that no answer follows give way."""
        with self._lock:
            while self._kept and self.held_bytes + n_bytes > _MOST_BYTES:
                self._kept.popitem(last=False)
            if self.held_bytes + n_bytes > _MOST_BYTES:
                raise CapacityError(
                    f"the grammars of running answers take {show_bytes(self.held_bytes)}, and this one"
                    f" {show_bytes(n_bytes)}: together more than {show_bytes(_MOST_BYTES)}",
                    hint="send it again when an answer has ended, or send a smaller schema",
                    retry_after_s=1.0,
                )
            self._held[number] = n_bytes


def _bytes_of(text: str) -> int:
    return _LEAST_BYTES + _BYTES_PER_BYTE * len(text)


def _grammar_text(constraint: JsonConstraint | LarkConstraint) -> str:
    if not isinstance(constraint, JsonConstraint):
        return LLMatcher.grammar_from_lark(constraint.grammar)
    schema = _ANY_OBJECT if constraint.schema is None else constraint.schema
    try:
        # Else a model that likes white space may fill the rest of its context with it.
        return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
    except ValueError as error:
        raise _refused(constraint, str(error)) from None


def _refused(constraint: Constraint, reason: str) -> InvalidRequest:
    # What follows is the state of the parser.
    reason = reason.split("<state>", 1)[0].strip()
    if isinstance(constraint, ToolConstraint):  # the place in a grammar that nobody has seen, and its lines
        reason = re.sub(r"^at \d+\(\d+\): ", "", reason.partition("\n")[0])
    reason = reason[:_SHOWN_CHARACTERS]
    what = "the grammar" if isinstance(constraint, LarkConstraint) else "the schema"
    hint = (
        'send tool_choice "auto", and that tool without strict: true'
        if isinstance(constraint, ToolConstraint)
        else None
    )
    return InvalidRequest(f"{constraint.field}: {what} cannot be enforced: {reason}", hint=hint, param=constraint.field)


class Grammar:
    """One compiled grammar. May be shared by rows and threads; only what its lexer has learned grows."""

    def __init__(
        self, matcher: Any, tokenizer: Any, field: str, number: int, compiled_bytes: int, *, thinks: bool = True
    ) -> None:
        """Take a fresh matcher, the tokenizer that knows the tags of thinking, who asked, its number, and its size.

        Where it *thinks*, what stands between these tags is free.
        """
        self.field = field
        self.number = number
        self.think_start: tuple[int, ...] = (tokenizer.think_start_tokens or ()) if thinks else ()
        self.think_end: tuple[int, ...] = (tokenizer.think_end_tokens or ()) if thinks else ()
        self.ends = sorted(tokenizer.eos_token_ids)
        self._compiled_bytes = compiled_bytes
        self._tokens = 0
        self._matcher = matcher

    @property
    def held_bytes(self) -> int:
        """What it takes by now: copies share their lexer, which learns from every token."""
        learned_bytes = _BYTES_PER_TOKEN * min(self._tokens, _MOST_STATES // 2)
        return self._compiled_bytes + learned_bytes

    def count_token(self) -> None:
        """Note that an answer has gone on by one token."""
        self._tokens += 1

    def processor(self, generated: Sequence[int], *, is_thinking: bool) -> GrammarProcessor:
        """Return a logits processor for one stay in a batch.

        Args:
            generated: the tokens of the answer that were made in stays before.
            is_thinking: whether the prompt ends inside the thinking.
        """
        bound = GrammarProcessor(self, self._matcher.deep_copy(), is_thinking=is_thinking)
        for token in generated:
            bound.take(token)
        return bound


class _Stage(Enum):
    """How far an answer is."""

    OPENING = "opening"  # no token yet: it may begin with thinking
    THINKING = "thinking"
    BOUND = "bound"


class GrammarProcessor:
    """Masks the logits of one row. Called on the device thread, once for each token."""

    def __init__(self, grammar: Grammar, matcher: Any, *, is_thinking: bool) -> None:
        """Made by `Grammar.processor` only, which gives it a matcher of its own."""
        self._grammar = grammar
        self._matcher = matcher
        self._ends = mx.array(grammar.ends)
        self._tail: list[int] = []
        self._is_first = True
        self._stage = _Stage.BOUND
        if is_thinking:
            self._stage = _Stage.THINKING
        elif len(grammar.think_start) == 1:  # a longer tag cannot be told from an answer at its first token
            self._stage = _Stage.OPENING

    def __call__(self, context: mx.array, logits: mx.array) -> mx.array:
        """Return *logits* [1, vocabulary] without the tokens that may not come next.

        *context* are all tokens so far; the last one is new, but at the first call.

        Raises:
            InvalidRequest: the answer has come to where the grammar is too large.
            GenerationFailed: the grammar has another fault.
        """
        try:
            if self._is_first:
                self._is_first = False
            else:
                self.take(cast("int", context[-1].item()))
            return self._masked(logits)
        except MlxdError:
            raise
        except Exception as error:
            raise GenerationFailed(f"the grammar of the answer failed: {in_words(error)}") from error

    def take(self, token: int) -> None:
        """Go on after *token*.

        Raises:
            InvalidRequest: as above.
        """
        if self._stage is _Stage.THINKING:
            self._tail = [*self._tail, token][-len(self._grammar.think_end) :]
            if tuple(self._tail) == self._grammar.think_end:
                self._stage = _Stage.BOUND
            return
        if self._stage is _Stage.OPENING:
            if token == self._grammar.think_start[0]:
                self._stage = _Stage.THINKING
                return
            self._stage = _Stage.BOUND
        self._grammar.count_token()
        if not self._matcher.is_stopped() and not self._matcher.consume_token(token):
            raise self._limit()

    def _masked(self, logits: mx.array) -> mx.array:
        if self._stage is _Stage.THINKING:
            return logits.at[:, self._ends].add(-mx.inf)  # an answer comes after it
        has_ended = self._matcher.is_stopped()
        allowed = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8) > 0
        if not has_ended and self._matcher.is_error():
            raise self._limit()
        if self._stage is _Stage.OPENING:
            allowed = allowed.copy()
            allowed[self._grammar.think_start[0]] = True
        if not allowed.any():
            return logits  # the end token has been drawn: this step's token is thrown away
        return mx.where(mx.array(allowed), logits, -mx.inf)

    def _limit(self) -> InvalidRequest:
        """Return what refuses an answer that the grammar is too large for; all other faults of it were found before."""
        reason = self._matcher.get_error().split("<state>", 1)[0].strip()
        field = self._grammar.field
        return InvalidRequest(
            f"{field}: the answer cannot be bound any further: {reason}", hint="send a smaller schema", param=field
        )
