"""Whether training can go on from a checkpoint, found out before anything is taken from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rhovae.checkpoints import check_random_state
from rhovae.files import RunError, shown

_MOST = 1 << 40
_ADAM = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")


def check_resumable(
    checkpoint: Mapping[str, Any],
    model: nn.Module,
    adam: Mapping[str, Any],
    fields: Sequence[str],
    origin: Path,
) -> None:
    """Refuse a checkpoint that training cannot go on from as if it had never stopped.

    Args:
        adam: the settings of a new optimiser.
        fields: of a line of the history.

    Raises:
        RunError: a part is missing, or is not what this model's training has written.
    """
    try:
        _check(checkpoint, model, adam, fields)
    except Exception as error:  # a value of the wrong type raises anything
        why = f"{type(error).__name__}: {shown(str(error))}"
        raise RunError(
            f"{origin} is damaged or of other settings: training cannot go on from it ({why})"
        ) from error


def check_counts(checkpoint: Mapping[str, Any], fields: Sequence[str], origin: Path) -> int:
    """How many epochs a checkpoint has behind it.

    Raises:
        RunError: its history is none.
    """
    try:
        history = checkpoint["rhovae"]["history"]
        _must(isinstance(history, list), "history")
        for row in history:
            _must(set(row) == set(fields) and all(_is_number(value) for value in row.values()), "history")
        return len(history)
    except Exception as error:
        raise RunError(f"{origin} is damaged: it has no history of a run ({type(error).__name__})") from error


def _check(
    checkpoint: Mapping[str, Any], model: nn.Module, adam: Mapping[str, Any], fields: Sequence[str]
) -> None:
    for name in ("epoch", "global_step"):
        _must(_is_count(checkpoint[name]), name)
    _must(isinstance(checkpoint["loops"], dict), "loops")
    _check_progress(checkpoint["loops"])
    fit = checkpoint["loops"]["fit_loop"]
    steps = fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    _must(steps == checkpoint["global_step"], "global_step")
    _must(fit["epoch_progress"]["current"]["ready"] == checkpoint["epoch"] + 1, "epoch")
    own = checkpoint["rhovae"]
    check_counts(checkpoint, fields, Path("history"))
    sums = own["train_sums"]
    _must(isinstance(sums, Tensor) and sums.shape == (3,) and sums.is_floating_point(), "train_sums")
    _must(_is_number(own["elapsed"]), "elapsed")
    check_random_state(own["random"])
    (optimizer,) = checkpoint["optimizer_states"]
    (group,) = optimizer["param_groups"]
    parameters = list(model.parameters())
    _must(group["params"] == list(range(len(parameters))), "parameters of the optimiser")
    for name in _ADAM:
        if name in group and name in adam:
            _must(_plain(group[name]) == _plain(adam[name]), f"{name} of the optimiser")
    for index, state in optimizer["state"].items():
        # beyond the range: IndexError
        shape = parameters[index].shape
        _must(set(state) == {"step", "exp_avg", "exp_avg_sq"}, "state of the optimiser")
        _must(state["step"].numel() == 1 and state["step"].is_floating_point(), "step of the optimiser")
        for name in ("exp_avg", "exp_avg_sq"):
            _must(state[name].shape == shape and state[name].is_floating_point(), f"{name} of the optimiser")


def _check_progress(loops: Mapping[str, Any]) -> None:
    for name, value in loops.items():
        if isinstance(value, dict):
            _check_progress(value)
        else:
            _must(isinstance(value, bool) or _is_count(value), str(name))


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and not math.isinf(value)  # type: ignore[arg-type]


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)
