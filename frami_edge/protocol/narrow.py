"""A part of a protocol: some methods, some folds."""

from __future__ import annotations

from collections.abc import Collection

from frami_edge.config import did_you_mean
from frami_edge.errors import ConfigError
from frami_edge.protocol.config import Protocol


def narrowed(protocol: Protocol, methods: str | None, folds: str | None) -> Protocol:
    """The protocol without the methods and folds that were not asked for.

    Results of a part are results of the whole: they have the same keys.

    Args:
        protocol: All of it.
        methods: Names with commas between; None for all. A bank that one of them borrows is still
            made by the recipe of its own method.
        folds: Likewise.

    Raises:
        ConfigError: No such method or fold.
    """
    names = _chosen(methods, protocol.methods, "method")
    kept = _chosen(folds, protocol.folds, "fold")
    chosen = {}
    for name in protocol.methods:
        method = protocol.methods[name]
        of = protocol.folds if method.folds is None else method.folds
        own = [fold for fold in of if fold in kept]
        if name in names and own:
            chosen[name] = method.model_copy(update={"folds": tuple(own)})
    if not chosen:
        raise ConfigError(
            f"None of {', '.join(names)} is run on fold {', '.join(kept)} in this protocol.",
            fix="Leave out --folds or --methods, or edit the protocol's folds.",
        )
    # What lends its bank stays known, without rows of its own.
    lenders = {m.bank_of for m in chosen.values() if m.bank_of} - set(chosen)
    lent = {name: protocol.methods[name].model_copy(update={"folds": ()}) for name in lenders}
    pairs = tuple(pair for pair in protocol.compare if set(pair) <= set(chosen))
    return protocol.model_copy(update={"methods": lent | chosen, "compare": pairs})


def _chosen(asked: str | None, known: Collection[str], what: str) -> list[str]:
    if asked is None:
        return list(known)
    names = [name.strip() for name in asked.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        word = unknown[0] if unknown else asked
        raise ConfigError(
            f"The protocol has no {what} {word!r}{did_you_mean(word, known) or '.'}",
            fix=f"It has: {', '.join(known)}.",
        )
    return names
