"""Models on disk, loaded, and kept loaded."""

from __future__ import annotations

from mlxd.protocol.operations.row import FORCE, MODEL, PAGE, Operation, Param, ParamType, count, flag, text

TABLE = (
    Operation("model.list", "All models on disk with their state.", PAGE),
    Operation("model.show", "One model.", {"model": MODEL}),
    Operation(
        "model.estimate",
        "What a model takes, loaded and with sequences, and what would give way for it.",
        {
            "model": MODEL,
            "context": count("Tokens of each sequence, from 1; 4096 or the model's context when left out."),
            "parallel": count("Sequences at a time, from 1; 1 when left out."),
        },
    ),
    Operation(
        "model.load",
        "Load a model.",
        {"model": MODEL, "force": flag("Load it although the estimate says that it does not fit.")},
        mutates=True,
        plans=True,
    ),
    Operation(
        "model.unload",
        "Unload a model once its requests have ended.",
        {"model": MODEL, "force": flag("End its requests with an error instead of waiting for them.")},
        mutates=True,
        plans=True,
    ),
    Operation("model.pin", "Never evict the model.", {"model": MODEL, "force": FORCE}, mutates=True, commits=True),
    Operation("model.unpin", "Make the model ordinary again.", {"model": MODEL}, mutates=True, commits=True),
    Operation(
        "model.set",
        "Change the settings of a model, all or none.",
        {
            "model": MODEL,
            "changes": Param(ParamType.CHANGES, "Name in [models] → value; null unsets it.", required=False),
            "reload": text(
                "When it is loaded again for this once: idle, now or next-load; its settings say when left out.",
                required=False,
            ),
            "force": flag("Take a context length or an adapter that does not fit the model, and warn."),
        },
        mutates=True,
        commits=True,
    ),
    Operation(
        "model.reset",
        "Forget that loads of the model failed, or killed the daemon: the next one is tried at once.",
        {"model": MODEL},
        mutates=True,
    ),
    Operation("model.alias.list", "The other names of models."),
    Operation(
        "model.alias.add",
        "Give a model another name.",
        {"model": MODEL, "alias": text("The other name.")},
        mutates=True,
        commits=True,
    ),
    Operation(
        "model.alias.remove",
        "Take another name away.",
        {"alias": text("The other name.")},
        mutates=True,
        commits=True,
    ),
    Operation("model.remove", "Delete the model's files under MLXD_HOME/models.", {"model": MODEL}, mutates=True),
    Operation("catalog.rescan", "Look for models on disk now.", mutates=True),
    Operation("preload.list", "The models that are kept loaded, with their state."),
    Operation(
        "preload.add",
        "Keep a model loaded.",
        {"model": MODEL, "at": count("Place in the list, from 0; the end when left out."), "force": FORCE},
        mutates=True,
        commits=True,
    ),
    Operation(
        "preload.remove",
        "Take a model off the list.",
        {"model": MODEL, "unload": flag("Unload it as well.")},
        mutates=True,
        commits=True,
    ),
    Operation(
        "preload.set",
        "Replace the list.",
        {"models": Param(ParamType.TEXTS, "Model ids in order."), "force": FORCE},
        mutates=True,
        commits=True,
    ),
)
