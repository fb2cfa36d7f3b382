"""One page on all runs of a reproduction: tables, curves, sample grids."""

from __future__ import annotations

import hashlib
import math
import shlex
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rhovae import pictures
from rhovae.comparison import read_result, table
from rhovae.config import TrainConfig
from rhovae.data import load_dataset
from rhovae.fid import accuracy, fid, train_classifier
from rhovae.files import RunError, open_regular, read_json, write_atomically, write_json
from rhovae.reproduction import Plan, finished, run_folder
from rhovae.runs import Run
from rhovae.training import read_history
from rhovae.weights import WEIGHTS, load_vae

_COLUMNS = (
    ("test -ELBO", "negative_elbo", 2),
    ("reported", "reported", 2),
    ("reconstruction", "reconstruction", 2),
    ("KL", "kl", 2),
    ("NLL", "nll", 2),
    ("active units", "active_units", 1),
    ("mean abs rho", "mean_abs_rho", 2),
    ("FID", "fid", 1),
    ("s/epoch", "seconds_per_epoch", 1),
)


def write_report(plan: Plan, folder: Path, command: Sequence[str], say: Callable[[str], None]) -> Path:
    """``report.md``, ``results.json`` and pictures in the folder, from runs that are all finished.

    Raises:
        RunError: one is not. ConfigError: one has other settings.
    """
    jobs = plan.jobs()
    missing = [job for job in jobs if not finished(folder, job)]
    if missing:
        raise RunError(f"{run_folder(folder, missing[0])} is not finished, nor are {len(missing) - 1} others")
    data = load_dataset(plan.settings.dataset, plan.settings.data_dir)
    classifier = train_classifier(data, folder / "classifier.safetensors")
    right = accuracy(classifier, data.test)
    say(f"classifier for the FID: {100 * right:.1f}% of test images named rightly")

    def distance(run: Path, job: TrainConfig) -> float:
        return fid(load_vae(run, trust_code=job.networks), classifier, data.test)

    results = [_result(folder, job, distance) for job in jobs]
    write_json(results, folder / "results.json")
    settings = plan.settings
    lines = [
        f"# {settings.dataset}: {', '.join(plan.models)}",
        "",
        f"{len(jobs)} runs: {settings.epochs} epochs, batch {settings.batch_size}, Adam "
        f"{settings.learning_rate:g}, {_seeds(plan)}; nats per test image. NLL: "
        f"IWAE-{settings.iwae_samples}. FID: features of a classifier that names {100 * right:.1f}% of the "
        f"test images rightly, {len(data.test):,} samples.",
    ]
    if "published" in plan.posteriors:
        lines += [
            "",
            "`reported` is what the training objective's own formula says: for `published` the authors' "
            "loss, which is no bound (docs/audit.md); for the others the negative ELBO itself.",
        ]
    for model in plan.models:
        for d in plan.latent_dims:
            lines += ["", f"## {model}, d = {d}", "", *_section(plan, folder, results, model, d)]
    lines += ["", "Made by", "", f"    {shlex.join(command)}", ""]
    path = folder / "report.md"
    write_atomically(path, "\n".join(lines).encode())
    return path


def _seeds(plan: Plan) -> str:
    return "1 seed" if plan.seeds == 1 else f"{plan.seeds} seeds, mean ± standard error over them"


def _result(folder: Path, job: TrainConfig, distance: Callable[[Path, TrainConfig], float]) -> dict[str, Any]:
    path = run_folder(folder, job)
    kept = path / "fid.json"
    with open_regular(path / WEIGHTS) as stream:
        weights = hashlib.sha256(stream.read()).hexdigest()
    known = read_json(kept) if kept.exists() else None
    if not isinstance(known, dict) or known.get("weights") != weights or type(known.get("fid")) is not float:
        known = {"fid": distance(path, job), "weights": weights}
        write_json(known, kept)
    figures = read_result(Run(path)) | {"fid": known["fid"]}
    return {"model": job.model, "seed": job.seed, "run": str(path.relative_to(folder)), **figures}


def _section(plan: Plan, folder: Path, results: list[dict[str, Any]], model: str, d: int) -> list[str]:
    rows, histories, first = [], {}, []
    for posterior in plan.posteriors:
        runs = [r for r in results if (r["model"], r["latent_dim"], r["posterior"]) == (model, d, posterior)]
        rows.append([posterior, *(_mean([r[name] for r in runs], digits) for _, name, digits in _COLUMNS)])
        histories[posterior] = [read_history(Run(folder / r["run"]).history_file) for r in runs]
        first.append(load_vae(folder / runs[0]["run"], trust_code=plan.settings.networks))
    curves = pictures.write_mean_curves(histories, folder / f"curves-{model}-d{d}.png")
    samples = pictures.write_sample_rows(first, folder / f"samples-{model}-d{d}.png")
    return [
        table(("posterior", *(title for title, _, _ in _COLUMNS)), rows),
        "",
        f"![Test negative ELBO and KL of {model}, d = {d}]({curves.name})",
        "",
        f"Samples of {', '.join(plan.posteriors)}, a row each, from the same draws of the prior:",
        "",
        f"![Samples of {model}, d = {d}]({samples.name})",
    ]


def _mean(values: Sequence[float], digits: int) -> str:
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.{digits}f} ± {error:.{digits}f}"
