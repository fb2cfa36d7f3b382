"""Where a number stopped being finite: the layer, the batch, and what to look at."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from rhovae.files import RunError, write_atomically


def first_not_finite(model: nn.Module, run: Callable[[], Mapping[str, Tensor]]) -> str | None:
    """What is first not finite: a parameter, a layer by its output, a term of the ELBO, or a gradient.

    Args:
        run: calls the model as training did, once; the terms that it yields, by name.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the parameter {name}"
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            # a container says nothing that its layers have not said
            if not found and isinstance(output, Tensor) and not output.isfinite().all():
                found.append(f"the output of the layer {name} ({type(modules[name]).__name__})")

        return hook

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(watch(name)) for name in modules if name]
    try:
        with torch.no_grad():
            terms = run()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    for name, values in terms.items():
        if not values.isfinite().all():
            return f"the {name}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return None


def stop(where: str | None, step: int, batch: dict[str, Any], path: Path) -> NoReturn:
    """Save the batch and end the run.

    Raises:
        RunError: always, with the place, the file, and what usually helps.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(batch, buffer)
    write_atomically(path, buffer.getbuffer())
    raise RunError(
        f"training stopped at step {step}: {where or 'the objective'} is not finite; the batch, its noise "
        f"key and the weights are in {path}. Try a smaller --learning-rate, or --precision 32 if it was less"
    )
