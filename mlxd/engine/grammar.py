"""Answers that are bound to a grammar: compiled on worker threads, enforced token by token inside the batch.

The masks are llguidance's. A grammar binds the answer and not the thinking before it: a model that may think is free
to, and is bound from the end of its thinking on.
"""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from enum import Enum
from typing import Any, cast

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher

from mlxd.engine.constraint import Constraint, JsonConstraint, LarkConstraint, ToolConstraint
from mlxd.engine.lark import Unenforceable
from mlxd.engine.tool_grammar import loosened_functions, tool_lark
from mlxd.engine.vocabulary import Vocabulary
from mlxd.protocol.errors import InvalidRequest

# Compiled grammars of one model; each takes some 10 kB and up to a second to make.
_KEPT_GRAMMARS = 128
_SHOWN_CHARACTERS = 300


class Grammars:
    """The compiled grammars of one model, least recently used first."""

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary, vocab_size: int) -> None:
        """Take mlx-lm's `TokenizerWrapper`, its tokens and the size of the logits."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._kept: OrderedDict[Constraint, Grammar] = OrderedDict()

    def read_tokens(self, field: str) -> Any:
        """Return llguidance's view of the tokens; the first call may take a second.

        Raises:
            InvalidRequest: the tokenizer is of a kind that cannot be read; *field* cannot be supported.
        """
        return self._vocabulary.tokens(self._vocab_size, field)

    def compile(self, constraint: Constraint) -> Grammar:
        """Return the grammar of *constraint*, made now or before. For worker threads.

        Raises:
            InvalidRequest: it cannot be enforced; the message says which part of it.
        """
        with self._lock:
            known = self._kept.get(constraint)
            if known is not None:
                self._kept.move_to_end(constraint)
                return known
        grammar = self._compiled(constraint)
        with self._lock:
            self._kept[constraint] = grammar
            while len(self._kept) > _KEPT_GRAMMARS:
                self._kept.popitem(last=False)
        return grammar

    def _compiled(self, constraint: Constraint) -> Grammar:
        if isinstance(constraint, ToolConstraint):
            return self._tool_grammar(constraint)
        return self._checked(constraint, _grammar_text(constraint))

    def _tool_grammar(self, constraint: ToolConstraint) -> Grammar:
        """Return the grammar of calls; a schema that is not strict and cannot be enforced counts for its types."""
        functions = json.loads(constraint.functions)
        try:
            try:
                return self._enforced(constraint)
            except (InvalidRequest, Unenforceable):
                loose = loosened_functions(functions)
                if loose == functions:
                    raise
                return self._enforced(dataclasses.replace(constraint, functions=json.dumps(loose)))
        except Unenforceable as error:
            raise _refused(constraint, str(error)) from None
        except (TypeError, AttributeError, KeyError, ValueError):  # what a client calls a schema may be anything
            raise _refused(constraint, "a keyword in it has a value of the wrong type") from None

    def _enforced(self, constraint: ToolConstraint) -> Grammar:
        lark = tool_lark(self._tokenizer, constraint)
        if lark is None:
            raise InvalidRequest(
                f"{constraint.field}: the format in which this model calls tools cannot be enforced",
                hint='send tool_choice "auto", and no tool with strict: true',
                param=constraint.field,
            )
        return self._checked(constraint, lark)

    def _checked(self, constraint: Constraint, text: str) -> Grammar:
        tokens = self.read_tokens(constraint.field)
        # Warnings are about speed.
        is_error, messages = LLMatcher.validate_grammar_with_warnings(text, tokens)
        if is_error:
            raise _refused(constraint, messages[0])
        matcher = LLMatcher(tokens, text, log_level=0)
        if matcher.is_error():
            raise _refused(constraint, matcher.get_error())
        return Grammar(matcher, self._tokenizer)


def _grammar_text(constraint: JsonConstraint | LarkConstraint) -> str:
    if not isinstance(constraint, JsonConstraint):
        return LLMatcher.grammar_from_lark(constraint.grammar)
    schema = '{"type":"object"}' if constraint.schema is None else constraint.schema
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
    """One compiled grammar. Never changes, and may be shared by rows and threads."""

    def __init__(self, matcher: Any, tokenizer: Any) -> None:
        """Take a fresh matcher and the tokenizer that knows the tags of thinking."""
        self._matcher = matcher
        self._think_start: tuple[int, ...] = tokenizer.think_start_tokens or ()
        self._think_end: tuple[int, ...] = tokenizer.think_end_tokens or ()
        self._ends = sorted(tokenizer.eos_token_ids)

    def processor(self, generated: Sequence[int], *, is_thinking: bool) -> GrammarProcessor:
        """Return a logits processor for one stay in a batch.

        Args:
            generated: the tokens of the answer that were made in stays before.
            is_thinking: whether the prompt ends inside the thinking.
        """
        bound = GrammarProcessor(
            self._matcher.deep_copy(), self._think_start, self._think_end, self._ends, is_thinking=is_thinking
        )
        for token in generated:
            bound.take(token)
        return bound


class _Stage(Enum):
    """How far an answer is."""

    OPENING = "opening"  # no token yet: it may begin with thinking
    THINKING = "thinking"
    BOUND = "bound"


class GrammarProcessor:
    """Masks the logits of one row. Called on the device thread, once for each token; never raises.

    `failure` says what went wrong inside of it: the row's owner looks, because an exception would cost other rows
    their tokens.
    """

    def __init__(
        self,
        matcher: Any,
        think_start: tuple[int, ...],
        think_end: tuple[int, ...],
        ends: list[int],
        *,
        is_thinking: bool,
    ) -> None:
        """Made by `Grammar.processor` only."""
        self._matcher = matcher
        self._think_start = think_start
        self._think_end = think_end
        self._ends = mx.array(ends)
        self._tail: list[int] = []
        self._is_first = True
        self._stage = _Stage.BOUND
        if is_thinking:
            self._stage = _Stage.THINKING
        elif len(think_start) == 1:  # a longer tag cannot be told from an answer at its first token
            self._stage = _Stage.OPENING
        self.failure: str | None = None

    def __call__(self, context: mx.array, logits: mx.array) -> mx.array:
        """Return *logits* [1, vocabulary] without the tokens that may not come next.

        *context* are all tokens so far; the last one is new, but at the first call.
        """
        try:
            if self._is_first:
                self._is_first = False
            else:
                self.take(cast("int", context[-1].item()))
            return logits if self.failure is not None else self._masked(logits)
        except Exception as error:  # noqa: BLE001  (see above)
            self.failure = f"{type(error).__name__}: {error}"
            return logits

    def take(self, token: int) -> None:
        """Go on after *token*."""
        if self._stage is _Stage.THINKING:
            self._tail = [*self._tail, token][-len(self._think_end) :]
            if tuple(self._tail) == self._think_end:
                self._stage = _Stage.BOUND
            return
        if self._stage is _Stage.OPENING:
            if token == self._think_start[0]:
                self._stage = _Stage.THINKING
                return
            self._stage = _Stage.BOUND
        if not self._matcher.is_stopped() and not self._matcher.consume_token(token):
            self.failure = self._matcher.get_error().split("<state>", 1)[0].strip()

    def _masked(self, logits: mx.array) -> mx.array:
        if self._stage is _Stage.THINKING:
            return logits.at[:, self._ends].add(-mx.inf)  # an answer comes after it
        allowed = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8) > 0
        if self._stage is _Stage.OPENING:
            allowed = allowed.copy()
            allowed[self._think_start[0]] = True
        if not allowed.any():
            return logits  # the end token has been drawn: this step's token is thrown away
        return mx.where(mx.array(allowed), logits, -mx.inf)
