"""What config.json says layer by layer."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .checkpoint import CheckpointError

FULL, SLIDING = "full_attention", "sliding_attention"


def per_layer(config: Mapping[str, Any], key: str, given: Sequence[Any], known: Sequence[Any] = ()) -> tuple[Any, ...]:
    """The entries of a list, one a layer. Raises CheckpointError where it is too short, or has one that is not among the known ones."""
    layers = config.get("num_hidden_layers") or 0
    if len(given) < layers:
        raise CheckpointError(f"config.json: {key} has {len(given)} entries for {layers} layers")
    if known and (unknown := [entry for entry in given if entry not in known]):
        raise CheckpointError(f"config.json: {key} has '{unknown[0]}', but {config.get('model_type')} is known with {' and '.join(known)} only")
    return tuple(given[:layers])


def sliding_windows(config: Mapping[str, Any], slides: Callable[[int], bool], usual: int | None = None) -> tuple[int, ...]:
    """By layer: how many keys a query sees, itself the last; 0 for all. From use_sliding_window, sliding_window (`usual` where the key is
    missing) and layer_types (where missing, `slides` says which layers do, if there is a window)."""
    width = (config.get("sliding_window", usual) or 0) if config.get("use_sliding_window") else 0
    types = config.get("layer_types") or [SLIDING if width and slides(i) else FULL for i in range(config.get("num_hidden_layers") or 0)]
    types = per_layer(config, "layer_types", types, (FULL, SLIDING))
    if SLIDING in types and not width:
        raise CheckpointError(f"config.json: layer_types has '{SLIDING}', but use_sliding_window and sliding_window give no window")
    return tuple(width if t == SLIDING else 0 for t in types)
