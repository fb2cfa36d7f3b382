"""Defaults, then the YAML file, then the flags."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from rhovae.config import (
    ConfigError,
    TrainConfig,
    add_flags,
    given_flags,
    make_config,
    read_yaml,
    resolve,
    write_yaml,
)


def flags(*arguments: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return given_flags(parser.parse_args(arguments))


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 7\nlatent-dim: 3\nlearning_rate: 1e-2\nprecision: 64\n")
    config = resolve(file, flags("--epochs", "9"), batch_size=32, latent_dim=99)
    assert config == TrainConfig(epochs=9, latent_dim=3, learning_rate=0.01, precision="64", batch_size=32)


def test_flags_not_given_leave_no_trace() -> None:
    assert flags() == {}
    assert flags("--posterior", "ar1", "--seed", "4") == {"posterior": "ar1", "seed": 4}


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    for config in (
        TrainConfig(posterior="ar1", data_dir="x", learning_rate=3e-5),
        TrainConfig(latent_order=3, beta=2.0),
    ):
        write_yaml(config, tmp_path / "c.yaml")
        assert resolve(tmp_path / "c.yaml", {}) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", r"c\.yaml: unknown setting 'epoch' \(did you mean 'epochs'\?\); known: .*posterior"),
        ("epochs: many", "epochs must be of type int, got 'many'"),
        ("epochs: 1.5", "epochs must be of type int, got 1.5"),
        ("epochs: true", "epochs must be of type int"),
        ("epochs: 0", "epochs must be at least 1, got 0"),
        ("seed: 4294967296", "seed must be at most 4294967295, got 4294967296"),
        ("latent_order: 4294967296", "latent_order must be at most 4294967295"),
        ("latent_order: -1", "latent_order must be at least 0, got -1"),
        ("latent_order: [1, 0]", r"latent_order must be of type int, got \[1, 0\]"),
        ("posterior: rh", r"unknown posterior 'rh' \(did you mean 'rho'\?\); known: diag, iso, rho, ar1"),
        ("dataset: cifar", "unknown data set 'cifar'; known: digits, fashion-mnist, mnist"),
        ("precision: half", "unknown precision 'half'; known: 32"),
        ("learning_rate: -1", "learning_rate must be positive"),
        ("- epochs", "expected lines of `name: value`, got a list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        resolve(file, {})


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the config file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert resolve(tmp_path / "empty.yaml", {}) == TrainConfig()


def test_unknown_setting_from_code() -> None:
    with pytest.raises(ConfigError, match="here: unknown setting 'x'"):
        make_config({"x": 1}, "here")
