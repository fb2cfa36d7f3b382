"""The settings of a run: defaults, then a YAML file, then flags, each overriding the one before."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any, get_args, get_type_hints

from rhovae.data import DATASETS
from rhovae.files import RunError, read_bytes, shown, write_atomically
from rhovae.models import MODELS
from rhovae.networks import Trust, refuse_code
from rhovae.posteriors import POSTERIORS
from rhovae.registry import unknown_name
from rhovae_ext.backends import NAMES as BACKENDS

# what NumPy takes
_LARGEST_SEED = 2**32 - 1
_LARGEST_COUNT = 2**31 - 1
_LONGEST_TEXT = 4096
_LONGEST_FILE = 1 << 16
PRECISIONS = ("32", "64", "bf16-mixed", "bf16-true", "16-mixed")


class ConfigError(RunError):
    """Settings that cannot be used; the message names the setting and what it may be."""


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result of a training run."""

    dataset: str = _setting("digits", "data set: {datasets}")
    data_dir: str | None = _setting(None, "folder of the data set's files, where it needs one")
    model: str = _setting("vanilla", "network: {models}")
    hidden: int = _setting(400, "width of the hidden layers")
    encoder: str | None = _setting(
        None, "encoder of your own in its place, as package.module:Name; it is called with (image_shape)"
    )
    decoder: str | None = _setting(
        None,
        "decoder of your own in its place, as package.module:Name; called with (latent_dim, image_shape)",
    )
    posterior: str = _setting("rho", "posterior: {posteriors}")
    latent_dim: int = _setting(10, "latent dimensions d")
    latent_order: int | None = _setting(
        None, "seed of a fixed random order in which the decoder reads the latents (default: as they come)"
    )
    epochs: int = _setting(100, "passes over the training data")
    batch_size: int = _setting(128, "rows of a step, over all processes together")
    learning_rate: float = _setting(1e-3, "Adam's learning rate")
    beta: float | None = _setting(None, "weight of the KL (default: the model's: 1, for beta 4)")
    kl_warmup: float = _setting(0.0, "epochs over which that weight grows from 0")
    free_bits: float = _setting(0.0, "nats of each dimension's KL that cost nothing")
    mmd: float | None = _setting(None, "weight of the MMD term (default: the model's: 0, for info 1000)")
    seed: int = _setting(0, "of the weights, the order of the data and the noise")
    precision: str = _setting("32", "arithmetic: " + ", ".join(PRECISIONS))
    threads: int = _setting(0, "CPU threads of each process (0: torch's choice)")
    backend: str = _setting("auto", "rhovae_ext backend: auto, native, triton, reference")
    iwae_samples: int = _setting(64, "importance samples K of the final evaluation")
    checkpoint_every: int = _setting(0, "also write a checkpoint every N steps (0: after epochs only)")

    def __post_init__(self) -> None:
        for name, registry in (("dataset", DATASETS), ("model", MODELS), ("posterior", POSTERIORS)):
            value = getattr(self, name)
            if value not in registry:
                raise ConfigError(unknown_name(registry.kind, value, registry.names()))
        for name, least in (
            ("hidden", 1),
            ("latent_dim", 1),
            ("latent_order", 0),
            ("epochs", 1),
            ("batch_size", 1),
            ("seed", 0),
            ("iwae_samples", 1),
            ("threads", 0),
            ("checkpoint_every", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, got {shown(value)}")
            most = {"seed": _LARGEST_SEED, "latent_order": _LARGEST_SEED, "threads": 4096}.get(
                name, _LARGEST_COUNT
            )
            if value is not None and value > most:
                raise ConfigError(f"{name} must be at most {most}, got {shown(value)}")
        for name in ("beta", "kl_warmup", "free_bits", "mmd"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < float("inf"):
                raise ConfigError(f"{name} must be at least 0 and finite, got {value}")
        if self.free_bits > 0 and self.posterior == "published":
            raise ConfigError(
                "free_bits does not go with the posterior 'published', whose objective has no terms per "
                "dimension; leave one of them out"
            )
        if not 0.0 < self.learning_rate < float("inf"):
            raise ConfigError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.backend not in ("auto", *BACKENDS):
            raise ConfigError(unknown_name("backend", self.backend, ["auto", *BACKENDS]))
        if self.precision not in PRECISIONS:
            raise ConfigError(unknown_name("precision", self.precision, list(PRECISIONS)))

    @property
    def networks(self) -> frozenset[str]:
        """The import paths of networks of one's own."""
        return frozenset(path for path in (self.encoder, self.decoder) if path is not None)

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with these settings changed."""
        return dataclasses.replace(self, **changes)


def make_config(settings: Mapping[str, Any], origin: str, trust_code: Trust = False) -> TrainConfig:
    """A config from names and values, converted to the settings' types.

    Raises:
        ConfigError: an unknown name or a value of the wrong kind; the message says where it stands.
        RunError: it names networks of one's own, which ``trust_code`` does not cover.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{origin}: expected settings by name, got {shown(settings)}")
    hints = get_type_hints(TrainConfig)
    values = {}
    for name, value in settings.items():
        key = _setting_name(name)
        if key not in hints:
            raise ConfigError(f"{origin}: {unknown_name('setting', key, list(hints))}")
        values[key] = _convert(key, value, hints[key], origin)
    try:
        config = TrainConfig(**values)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    refuse_code({"encoder": config.encoder, "decoder": config.decoder}, trust_code, origin)
    return config


def _setting_name(name: object) -> str:
    return name.replace("-", "_") if isinstance(name, str) and len(name) < 64 else shown(name)


def _convert(name: str, value: Any, kind: Any, origin: str) -> Any:
    if value is None and kind != _type_of(kind):
        return None
    kind = _type_of(kind)
    # YAML 1.1 reads 1e-3 as text, `32` as a number and 2026-01-01 as a date
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float | date):
            raise ValueError
        if kind is int and isinstance(value, float) and value != int(value):
            raise ValueError
        converted = kind(value)
        if kind is str and not _is_text(converted):
            raise ValueError
        return converted
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{origin}: {name} must be of type {kind.__name__}, got {shown(value)}") from None


def _is_text(value: str) -> bool:
    """Whether it can be a name or a path."""
    value.encode()  # a lone surrogate is none
    return len(value) <= _LONGEST_TEXT and "\0" not in value


def _type_of(hint: Any) -> Any:
    """The type of a setting's values other than None."""
    return next(iter(get_args(hint)), hint)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file of names and values."""
    import yaml

    try:
        text = read_bytes(path, _LONGEST_FILE).decode()
    except RunError as error:
        raise ConfigError(f"cannot read the config file {path}: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    try:
        content = yaml.safe_load(text)
    except Exception as error:  # its constructors raise whatever a value makes them raise
        said = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else type(error).__name__
        raise ConfigError(f"{path} is not valid YAML: {said}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected lines of `name: value`, got a {type(content).__name__}")
    return content


def write_yaml(config: TrainConfig, path: Path) -> None:
    """Every setting, in order, in the form that ``--config`` reads."""
    import yaml

    write_atomically(path, yaml.safe_dump(dataclasses.asdict(config), sort_keys=False).encode())


def add_flags(parser: argparse.ArgumentParser, *, leave_out: tuple[str, ...] = (), **defaults: Any) -> None:
    """A flag for every setting; a flag that is not given leaves no trace in the parsed arguments."""
    group = parser.add_argument_group("settings (flags win over --config)")
    names = {
        "datasets": ", ".join(DATASETS.names()),
        "models": ", ".join(MODELS.names()),
        "posteriors": ", ".join(POSTERIORS.names()),
    }
    hints = get_type_hints(TrainConfig)
    for setting in fields(TrainConfig):
        if setting.name in leave_out:
            continue
        kind = _type_of(hints[setting.name])
        default = defaults.get(setting.name, setting.default)
        shown = "" if default is None else f" (default: {default})"
        group.add_argument(
            "--" + setting.name.replace("_", "-"),
            dest=setting.name,
            type=kind if kind in (int, float) else str,
            default=argparse.SUPPRESS,
            metavar={int: "N", float: "X"}.get(kind, "NAME" if setting.name != "data_dir" else "DIR"),
            help=setting.metadata["help"].format(**names) + shown,
        )


def given_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags."""
    return {f.name: getattr(arguments, f.name) for f in fields(TrainConfig) if hasattr(arguments, f.name)}


def trusted(flags: Mapping[str, Any], trust_code: bool) -> Trust:
    """What may be imported: anything with ``trust_code``, else the networks that the flags name."""
    return trust_code or frozenset(flags[name] for name in ("encoder", "decoder") if flags.get(name))


def resolve(
    config_file: Path | None, flags: Mapping[str, Any], trust_code: bool = False, **defaults: Any
) -> TrainConfig:
    """Defaults, then the file, then the flags."""
    from_file = read_yaml(config_file) if config_file else {}
    from_file = {name: value for name, value in from_file.items() if _setting_name(name) not in flags}
    base = make_config(from_file, str(config_file), trust_code)
    known = {_setting_name(name) for name in from_file}
    base = base.replace(**{k: v for k, v in defaults.items() if k not in known})
    return base.replace(**flags) if flags else base
