"""P12: what is said is what is."""

from __future__ import annotations

import json
from dataclasses import asdict

from mlxd.pool.lifecycle import ModelState
from mlxd.pool.resident import Sequence, SequenceState
from tests.support.promise.base import Promise

ON_THE_DEVICE = frozenset({ModelState.READY, ModelState.DRAINING, ModelState.UNLOADING})


class P12Truth(Promise):
    """What status reports equals what the device holds, once it is quiet."""

    def look(self) -> None:
        backend = self.world.backend
        # An estimate may be too small; the first measurement comes at the end of the load.
        underestimated_bytes = sum(
            max(0, backend.models[resident.id].weights_bytes - resident.weights_bytes)
            for resident in self.residents
            if resident.is_loading
        )
        assert backend.active_bytes <= self.state.held_bytes + underestimated_bytes, (
            "P12: the device holds more than the ledger says"
        )
        there = [resident for resident in self.residents if resident.state in ON_THE_DEVICE]
        assert {resident.id for resident in there} == {engine.model_id for engine in backend.engines}, (
            "P12: other models are loaded than the pool says"
        )
        engines = {engine.model_id: engine for engine in backend.engines}
        for resident in there:
            engine = engines[resident.id]
            assert resident.weights_bytes == engine.weights_bytes, "P12: the weights are not what the device holds"
            if not engine.has_commands and not engine.closed:
                assert engine.sequence_ids == set(resident.active), "P12: the device runs what the pool does not know"
            for sequence in resident.active.values():
                self._look_at(sequence)

    def look_at_end(self) -> None:
        status, backend = self.world.pool.status(), self.world.backend
        json.dumps(asdict(status))
        shown = {model.id: model for model in status.models}
        for engine in backend.engines:
            model = shown[engine.model_id]
            cached_bytes = model.prompt_cache_bytes + model.grammar_bytes
            assert (model.weights_bytes, cached_bytes, model.running, model.paused) == (
                engine.weights_bytes,
                engine.prompt_cache_bytes,
                0,
                0,
            ), "P12: status and device differ"
            assert engine.sequences == 0, "P12: the device runs something for nobody"
        memory = status.memory
        parts = (memory.weights_bytes, memory.kv_bytes, memory.prompt_cache_bytes, memory.grammar_bytes)
        rest_bytes = memory.loading_bytes + memory.margin_bytes
        assert memory.reserved_bytes == sum(parts) + rest_bytes, "P12: the ledger does not add up"
        assert backend.running == 0

    def look_when_empty(self) -> None:
        """After unloading all, nothing is held and nothing is reserved."""
        assert self.world.backend.active_bytes == 0, "P12: the device holds something after all was unloaded"
        assert self.state.held_bytes == 0, "P12: something is reserved after all was unloaded"

    def _look_at(self, sequence: Sequence) -> None:
        holds = sequence.state in {SequenceState.RUNNING, SequenceState.PAUSING, SequenceState.ENDING}
        assert holds or sequence.granted_tokens == 0, "P12: memory is reserved for what holds none"
