"""Training on Lightning: any number of processes, resumable at any checkpoint bit for bit on the CPU."""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
import logging
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

import rhovae_ext
from rhovae.checkpoints import (
    AtomicCheckpointIO,
    load_weights,
    random_state,
    read_checkpoint,
    set_random_state,
)
from rhovae.config import ConfigError, TrainConfig
from rhovae.data import BatchSampler, ImageBatch, ImageData, batch_loader, scale_pixels
from rhovae.files import RunError, read_bytes, write_atomically
from rhovae.footprint import check_training
from rhovae.memory import require_disk
from rhovae.models import VAE, bernoulli_log_likelihood
from rhovae.objectives import Objective, free_bits, mmd, negative_elbo
from rhovae.posteriors import Posterior
from rhovae.resuming import check_counts, check_resumable
from rhovae.runs import Run
from rhovae.signals import Stopped
from rhovae.trouble import first_not_finite, stop
from rhovae.weights import check_fit, check_order, model_of, serialise
from rhovae_ext import fold_in

HISTORY_FIELDS = (
    "epoch",
    "step",
    "train_loss",
    "train_reconstruction",
    "train_kl",
    "test_loss",
    "test_reconstruction",
    "test_kl",
    "seconds",
)


_LOG_EVERY = 50


def is_first_process() -> bool:
    """Whether this process is alone or rank 0 of its ``torchrun``."""
    return os.environ.get("RANK", "0") == "0"


def check_machine(config: TrainConfig) -> None:
    """Refuse, before any work, settings that this machine cannot follow.

    Raises:
        ConfigError: the backend or the precision is not to be had; the message says why.
    """
    check_backend(config)
    if config.precision == "16-mixed" and _devices()["accelerator"] == "cpu":
        raise ConfigError("precision 16-mixed needs a GPU, and none is visible; use bf16-mixed on the CPU")


def check_backend(config: TrainConfig) -> None:
    """Refuse a backend that is not to be had on this machine.

    Raises:
        ConfigError: with the reason.
    """
    if config.backend != "auto":
        reason = rhovae_ext.available_backends(_devices()["accelerator"])[config.backend]
        if reason is not None:
            raise ConfigError(f"backend {config.backend!r} is not available: {reason}")


def check_objective(objective: Objective, model: VAE) -> None:
    """Refuse, under several processes, what needs the whole batch in one.

    Raises:
        ConfigError: the MMD term, or batch normalisation.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    norm = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if objective.mmd > 0 or norm:
        what = "the MMD term" if objective.mmd > 0 else "batch normalisation"
        raise ConfigError(f"{what} looks at the whole batch at once: train this model in one process")


def check_model(config: TrainConfig, data: ImageData) -> int:
    """Refuse, before any work, a model that cannot be built for these images; the disk that its run takes.

    Raises:
        ConfigError: its networks do not fit them, a network of one's own cannot be imported, or its weights
            cannot be written in the end.
        RunError: memory cannot hold it.
    """
    disk = check_training(config, data.image_shape, len(data.train))
    model = build_model(config, data)
    check_objective(objective_of(model, config), model)
    serialise(model, config)
    return disk


def check_end(folder: Path, disk: int) -> None:
    """Find out before the first epoch what would be missing after the last.

    Raises:
        ImportError: a package for logs, pictures or weights. RunError: space on the disk.
    """
    for package in ("tensorboard", "matplotlib", "safetensors"):
        importlib.import_module(package)
    from rhovae.pictures import rehearse

    rehearse()
    require_disk(disk, folder)


def check_epochs(run: Run, config: TrainConfig) -> None:
    """Refuse to resume a run for fewer epochs than it has behind it.

    Raises:
        ConfigError: it has more.
    """
    if run.checkpoint.exists():
        done = check_counts(read_checkpoint(run.checkpoint, "rhovae"), HISTORY_FIELDS, run.checkpoint)
        if done > config.epochs:
            raise ConfigError(f"{run.folder} has {done} epochs behind it, more than --epochs {config.epochs}")


def use_threads(config: TrainConfig) -> None:
    """Give this process the CPU threads that the config asks for; sums round by how many there are."""
    if config.threads:
        torch.set_num_threads(config.threads)


def noise_seed(seed: int, purpose: str) -> int:
    """A 64-bit Philox seed for one use of noise, unrelated to that of any other use or run."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _totals(log_likelihood: Tensor, kl: Tensor) -> Tensor:
    """Rows, -log p(x | z) and KL, summed."""
    rows = torch.full((), kl.shape[0], dtype=torch.float64, device=kl.device)
    return torch.stack([rows, -log_likelihood.detach().sum().double(), kl.detach().sum().double()])


def objective_of(model: VAE, config: TrainConfig) -> Objective:
    """The model's objective with what the settings say otherwise."""
    own = model.objective
    return Objective(
        beta=own.beta if config.beta is None else config.beta,
        warmup=config.kl_warmup,
        free_bits=config.free_bits,
        mmd=own.mmd if config.mmd is None else config.mmd,
    )


def _prior(z: Tensor, key: Tensor) -> Tensor:
    """As many draws of N(0, I)."""
    return Posterior(torch.zeros_like(z), z.new_zeros(*z.shape[:-1], 1)).rsample(key=key)


class VAETask(pl.LightningModule):
    """What Lightning trains: a VAE's objective, with Adam. The logged losses are negative ELBOs.

    The noise of a step is a function of ``(seed, step, row of the global batch)``: it is the same after a
    resume and for any number of processes.
    """

    def __init__(self, model: VAE, data: ImageData, config: TrainConfig, folder: Path = Path(".")) -> None:
        super().__init__()
        self.model = model
        self.data = data
        self.config = config
        self.folder = folder
        self.objective = objective_of(model, config)
        self.batch: ImageBatch | None = None
        self.train_seed = noise_seed(config.seed, "train")
        self.test_seed = noise_seed(config.seed, "watch")
        self.prior_seed = noise_seed(config.seed, "prior")
        self.train_sums = torch.zeros(3, dtype=torch.float64)
        self.test_sums = torch.zeros(3, dtype=torch.float64)

    def training_step(self, batch: ImageBatch, _: int) -> Tensor:
        x, key = self._pixels(batch), fold_in(self.train_seed, self.global_step)
        by_dimension = self.objective.free_bits > 0
        posterior = self.model.encode(x)
        z, kl = posterior.rsample_kl(key=key, row_offset=batch.row_offset, per_dim=by_dimension)
        log_likelihood = bernoulli_log_likelihood(x, self.model.decode(z))
        self.train_sums += _totals(log_likelihood, kl.sum(-1) if by_dimension else kl)
        # processes average their gradients, so each counts its rows against an equal share of the batch
        share = batch.global_size / self.trainer.world_size
        loss = negative_elbo(log_likelihood, self._cost(posterior, kl, batch), batch_size=share)
        if self.objective.mmd > 0 and len(z) > 1:
            prior = _prior(z, fold_in(self.prior_seed, self.global_step))
            loss = loss + self.objective.mmd * mmd(z, prior)
        if not loss.isfinite():
            self._stop(batch, key)
        if self.logger is not None and self.global_step % _LOG_EVERY == 0:
            self.logger.log_metrics({"step/train_loss": loss.item()}, step=self.global_step)
        return loss

    def _cost(self, posterior: Posterior, kl: Tensor, batch: ImageBatch) -> Tensor:
        """What the objective charges each row for its KL, given per row, or per dimension for free bits."""
        if self.objective.free_bits > 0:
            mean = self.over_processes(kl.detach().sum(0)) / batch.global_size
            cost = free_bits(kl, self.objective.free_bits, mean)
        else:
            cost = posterior.training_kl(kl, batch.global_size)
        weight = self.objective.kl_weight(self.global_step / self.trainer.num_training_batches)
        return cost if weight == 1.0 else weight * cost

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # a scaled half-precision gradient may overflow; its scaler skips the step
        if self.config.precision == "16-mixed":
            return
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if gradients and not torch.stack(torch._foreach_norm(gradients)).sum().isfinite():
            assert self.batch is not None
            self._stop(self.batch, fold_in(self.train_seed, self.global_step))

    def on_train_batch_start(self, batch: ImageBatch, _: int) -> None:
        self.batch = batch

    def _stop(self, batch: ImageBatch, key: Tensor) -> NoReturn:
        def terms() -> dict[str, Tensor]:
            log_likelihood, kl = self.model(self._pixels(batch), key=key, row_offset=batch.row_offset)
            return {"KL": kl, "log-likelihood": log_likelihood}

        where = first_not_finite(self.model, terms)
        kept = {
            **batch._asdict(),
            "step": self.global_step,
            "key": key,
            "state_dict": self.model.state_dict(),
        }
        stop(where, self.global_step, kept, self.folder / f"not-finite-{self.global_rank}.pt")

    def validation_step(self, batch: ImageBatch, index: int) -> None:
        log_likelihood, kl = self.model(
            self._pixels(batch), key=fold_in(self.test_seed, index), row_offset=batch.row_offset
        )
        totals = _totals(log_likelihood, kl)
        # the last update of all has no next step that would find it out
        if not totals.isfinite().all():
            self._stop(batch, fold_in(self.test_seed, index))
        self.test_sums += totals

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, fused=True)

    def train_dataloader(self) -> DataLoader[ImageBatch]:
        return self._loader(True)

    def val_dataloader(self) -> DataLoader[ImageBatch]:
        return self._loader(False)

    def on_train_epoch_start(self) -> None:
        self.train_sums = torch.zeros(3, dtype=torch.float64, device=self.device)

    def on_validation_epoch_start(self) -> None:
        self.test_sums = torch.zeros(3, dtype=torch.float64, device=self.device)

    def over_processes(self, sums: Tensor) -> Tensor:
        """The sums of all processes together."""
        total = self.trainer.strategy.reduce(sums.clone(), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _pixels(self, batch: ImageBatch) -> Tensor:
        dtype = self.model.head.linear.weight.dtype
        return scale_pixels(batch.images, self.data.train.white, dtype)

    def _loader(self, train: bool) -> DataLoader[ImageBatch]:
        images = self.data.train if train else self.data.test
        sampler = BatchSampler(
            len(images),
            self.config.batch_size if train else max(self.config.batch_size, 1000),
            seed=self.config.seed if train else None,
            first_step=self.global_step if train else 0,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return batch_loader(images, sampler)


class Keeper(Callback):
    """Writes checkpoint and history, and brings back what Lightning does not: sums and random state."""

    def __init__(self, run: Run, every: int) -> None:
        self.run = run
        self.every = every
        self.history: list[dict[str, Any]] = []
        self.random: dict[str, Any] | None = None
        self.elapsed = 0.0
        self.began = 0.0
        self.started = False
        self.on_sigterm = signal.getsignal(signal.SIGTERM)

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        # Lightning's own handler ends training after the step, and the process as if all were done
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.on_sigterm)

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        assert isinstance(task, VAETask)
        self.started = True
        task.train_sums = task.train_sums.to(task.device)
        self.began = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.elapsed, self.began = 0.0, time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, task: pl.LightningModule, batch: Any, index: int
    ) -> None:
        if self.random is not None:
            set_random_state(self.random)
            self.random = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        last = index + 1 == trainer.num_training_batches
        # the last step of an epoch is kept by the epoch's own checkpoint
        if self.every and trainer.global_step % self.every == 0 and not last:
            trainer.save_checkpoint(self.run.checkpoint)
        if last:
            self.elapsed += time.perf_counter() - self.began

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        assert isinstance(task, VAETask)
        row: dict[str, Any] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        for part, sums in (("train", task.train_sums), ("test", task.test_sums)):
            rows, reconstruction, kl = task.over_processes(sums).tolist()
            row[f"{part}_loss"] = (reconstruction + kl) / rows
            row[f"{part}_reconstruction"] = reconstruction / rows
            row[f"{part}_kl"] = kl / rows
        row["seconds"] = self.elapsed
        self.history.append(row)
        if trainer.progress_bar_callback is not None:
            task.log("test_loss", row["test_loss"], prog_bar=True, logger=False, rank_zero_only=True)
        trainer.save_checkpoint(self.run.checkpoint)
        if trainer.is_global_zero:
            write_history(self.history, self.run.history_file)
            if trainer.logger is not None:
                scalars = {f"epoch/{name}": row[name] for name in HISTORY_FIELDS[2:]}
                trainer.logger.log_metrics(scalars, step=trainer.global_step)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(task, VAETask)
        running = time.perf_counter() - self.began
        checkpoint["rhovae"] = {
            "history": self.history,
            "train_sums": task.over_processes(task.train_sums).cpu(),
            "elapsed": self.elapsed + running,
            "random": random_state(),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(task, VAETask)
        kept = checkpoint["rhovae"]
        self.history = kept["history"]
        self.elapsed = kept["elapsed"]
        self.random = kept["random"]
        # the totals of all processes go on from the first
        if trainer.is_global_zero:
            task.train_sums = kept["train_sums"]


def write_history(history: list[dict[str, Any]], path: Path) -> None:
    """One line per epoch, as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, text.getvalue().encode())


def read_history(path: Path) -> list[dict[str, float]]:
    """The lines of :func:`write_history`.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        lines = read_bytes(path).decode().splitlines()
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]
        if not rows or not all(set(HISTORY_FIELDS) == set(row) for row in rows):
            raise ValueError("it is not the table of a run")
    except (ValueError, TypeError, csv.Error) as error:
        raise RunError(f"{path} is damaged ({error}); a --resume of the run writes it anew") from error
    return rows


def build_model(config: TrainConfig, data: ImageData) -> VAE:
    """The model of a config, with the initial weights that its seed gives.

    Raises:
        ConfigError: its networks do not fit the images, or a network of one's own cannot be had.
    """
    # the weights must not depend on what was drawn before
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            return model_of(config, data.image_shape)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def load_model(run: Run, config: TrainConfig, data: ImageData) -> VAE:
    """The model of a run with the weights of its last checkpoint."""
    state = read_checkpoint(run.checkpoint, "state_dict", "rhovae")["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise RunError(f"{run.checkpoint} is damaged: it has no weights by name")
    weights = {name.removeprefix("model."): value for name, value in state.items()}
    check_fit(config, data.image_shape, weights, run.checkpoint)
    model = build_model(config, data)
    load_weights(model, weights, run.checkpoint)
    check_order(model, run.checkpoint)
    return model.eval()


def fit(run: Run, config: TrainConfig, data: ImageData, *, resume: bool = False) -> VAE:
    """Train, with ``resume`` from the run's last checkpoint if it has one, and return the model.

    Under ``torchrun`` every process calls this; the gradients are those of the global batch, and only the
    first process writes into the run.
    """
    use_threads(config)
    pl.seed_everything(config.seed, verbose=False)
    task = VAETask(build_model(config, data), data, config, run.folder)
    checkpoint = run.checkpoint if resume and run.checkpoint.exists() else None
    if checkpoint is not None:
        load_model(run, config, data)
        adam = task.configure_optimizers().state_dict()["param_groups"][0]
        check_resumable(read_checkpoint(checkpoint), task, adam, HISTORY_FIELDS, checkpoint)
    keeper = Keeper(run, config.checkpoint_every)
    quiet_lightning()
    bar = _progress_bar()
    trainer = pl.Trainer(
        max_epochs=config.epochs,
        precision=_lightning_precision(config.precision),  # type: ignore[arg-type]
        callbacks=[keeper, *bar],
        logger=TensorBoardLogger(run.folder, name="", version="tensorboard") if is_first_process() else False,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bool(bar),
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **_devices(),
    )
    try:
        trainer.fit(task, ckpt_path=checkpoint, weights_only=True)
    except BaseException as error:
        cause = _first_cause(error, run, resumed=checkpoint is not None and not keeper.started)
        if cause is error:
            raise
        raise cause from cause.__cause__ or error
    return task.model.cpu().eval()


def _first_cause(error: BaseException, run: Run, resumed: bool) -> BaseException:
    """What ended training, whatever Lightning's own clean-up made of it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Stopped | KeyboardInterrupt | RunError):
            return cause
        cause = cause.__context__
    if isinstance(error, OSError) and error.filename is None:
        return RunError(
            f"{run.folder} cannot be written: {error.strerror or error}; free some space on its disk"
        )
    if resumed and isinstance(error, Exception) and not isinstance(error, OSError):
        return RunError(
            f"{run.checkpoint} is damaged and training cannot go on from it ({type(error).__name__})"
        )
    return error


def _lightning_precision(precision: str) -> str:
    return {"32": "32-true", "64": "64-true"}.get(precision, precision)


def _progress_bar() -> list[Callback]:
    return [TQDMProgressBar(leave=False)] if sys.stdout.isatty() else []


def _devices() -> dict[str, Any]:
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return {"accelerator": accelerator, "devices": 1}
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    return {"accelerator": accelerator, "devices": local, "num_nodes": world // local, "strategy": "ddp"}


def quiet_lightning() -> None:
    """Keep Lightning's notes on hardware, and advice that does not hold here, off the screen."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",
        r".*isinstance\(treespec, LeafSpec\).*",
        r".*smaller than the logging interval.*",
        r".*your dataloader is not resumable.*",
        r".*Checkpoint directory.*exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message)
