"""Several posteriors trained with the same settings, side by side in one table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rhovae import pictures
from rhovae.config import ConfigError, TrainConfig
from rhovae.data import ImageData
from rhovae.evaluation import Metrics, evaluate
from rhovae.files import RunError, read_json, shown, write_atomically, write_json
from rhovae.models import VAE
from rhovae.runs import Run
from rhovae.training import fit, noise_seed, read_history
from rhovae.weights import save_model

_FIGURES = ("epochs", "seconds_per_epoch", *(f.name for f in fields(Metrics)))


def finish(run: Run, config: TrainConfig, model: VAE, data: ImageData) -> dict[str, Any]:
    """Evaluate a trained model on the test split, and write its metrics and pictures into the run."""
    history = read_history(run.history_file)
    metrics = evaluate(
        model,
        data.test,
        iwae_samples=config.iwae_samples,
        seed=noise_seed(config.seed, "evaluate"),
        training_batch=config.batch_size,
    )
    result = {
        "dataset": config.dataset,
        "split": "test",
        "posterior": config.posterior,
        "epochs": len(history),
        "seconds_per_epoch": statistics.median(row["seconds"] for row in history),
        **metrics.as_dict(),
    }
    save_model(model, config, result, run.folder)
    pictures.write_all(model, data.test, history, run.folder)
    # last, so that a run which has its metrics has everything
    write_json(result, run.metrics_file)
    return result


def compare(
    posteriors: Sequence[str],
    config: TrainConfig,
    data: ImageData,
    folder: Path,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Train and evaluate one run per posterior under ``folder``; write ``table.md`` and ``results.json``.

    Runs that the folder holds already are taken as they are where they are finished, and continued where not.
    """
    results = []
    for posterior in posteriors:
        chosen = config.replace(posterior=posterior)
        run = Run(folder / posterior)
        if finished(run, chosen):
            say(f"{posterior}: finished already")
            results.append(read_result(run))
            continue
        begun = run.config_file.exists()
        if not begun:
            run = Run.create(chosen, run.folder)
        run.note_start(chosen)
        say(f"{posterior}: training {chosen.epochs} epochs into {run.folder}")
        results.append(finish(run, chosen, fit(run, chosen, data, resume=begun), data))
    write_json(results, folder / "results.json")
    write_atomically(folder / "table.md", (markdown(results) + "\n").encode())
    return results


def finished(run: Run, wanted: TrainConfig) -> bool:
    """Whether a run has all that is read of it.

    Raises:
        ConfigError: its folder holds a run with other settings.
    """
    if not run.config_file.exists():
        return False
    config = run.config(wanted.networks)
    if config != wanted:
        have, want = asdict(config), asdict(wanted)
        name = next(name for name in want if have[name] != want[name])
        raise ConfigError(
            f"{run.folder} holds a run with {name} = {have[name]}, its report needs {want[name]}: a report "
            "never mixes settings; move that run away, or give another --out"
        )
    if not run.metrics_file.exists():
        return False
    # a run that was resumed with other settings, and stopped again, still has the figures of before
    done = read_result(run)
    return (done["epochs"], done["iwae_samples"]) == (wanted.epochs, wanted.iwae_samples)


def read_result(run: Run) -> dict[str, Any]:
    """The figures of a finished run.

    Raises:
        RunError: they are missing or damaged.
    """
    result = read_json(run.metrics_file)
    if not isinstance(result, dict) or not isinstance(result.get("posterior"), str):
        raise RunError(
            f"{run.metrics_file} holds no figures of a run; delete it, and --resume makes it again"
        )
    for name in _FIGURES:
        value = result.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise RunError(
                f"{run.metrics_file} is damaged: {name} must be a number, got {shown(value)}; delete it, and "
                "--resume makes it again"
            )
    return result


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """One row per result, with standard errors over the images."""
    samples = results[0]["iwae_samples"]
    columns = (
        "posterior",
        "test -ELBO",
        "reconstruction",
        "KL",
        f"NLL (IWAE-{samples})",
        "active units",
        "mean abs rho",
        "s/epoch",
    )
    rows = [
        (
            result["posterior"],
            f"{result['negative_elbo']:.2f} ± {result['negative_elbo_se']:.2f}",
            f"{result['reconstruction']:.2f}",
            f"{result['kl']:.2f}",
            f"{result['nll']:.2f} ± {result['nll_se']:.2f}",
            f"{result['active_units']}/{result['latent_dim']}",
            f"{result['mean_abs_rho']:.2f}",
            f"{result['seconds_per_epoch']:.2f}",
        )
        for result in results
    ]
    return table(columns, rows)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is a name and whose others are figures."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "| " + " | ".join([cells[0].ljust(widths[0]), *numbers]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(columns), rule, *map(line, rows)])
