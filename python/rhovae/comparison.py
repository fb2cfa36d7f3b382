"""Several posteriors trained with the same settings, side by side in one table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rhovae import pictures
from rhovae.config import TrainConfig
from rhovae.data import ImageData
from rhovae.evaluation import evaluate
from rhovae.models import VAE
from rhovae.runs import Run, write_json
from rhovae.training import fit, noise_seed, read_history
from rhovae.weights import save_model


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
    """Train and evaluate one run per posterior under ``folder``; write ``table.md`` and ``results.json``."""
    results = []
    for posterior in posteriors:
        chosen = config.replace(posterior=posterior)
        run = Run.create(chosen, folder / posterior)
        run.note_start(chosen)
        say(f"{posterior}: training {chosen.epochs} epochs into {run.folder}")
        results.append(finish(run, chosen, fit(run, chosen, data), data))
    write_json(results, folder / "results.json")
    (folder / "table.md").write_text(markdown(results) + "\n")
    return results


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
