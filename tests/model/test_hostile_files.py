"""Files are data: none runs code, takes memory without end, makes its reader wait or ends in a traceback."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from rhovae import memory
from rhovae.checkpoints import read_checkpoint
from rhovae.commands import main
from rhovae.comparison import read_result
from rhovae.config import TrainConfig
from rhovae.data import load_dataset
from rhovae.files import RunError
from rhovae.reproduction import read_plan, sole_user
from rhovae.runs import Run
from rhovae.training import load_model, read_history
from rhovae.weights import load_vae

SMALL = ["--hidden", "8", "--latent-dim", "3", "--iwae-samples", "2", "--epochs", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "r"
    assert main(["train", *SMALL, "--threads", "1", "--latent-order", "1", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run, in a folder where a module says when it is imported."""
    shutil.copytree(trained, tmp_path / "r")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(
        "open('imported', 'w').close()\n"
        "from torch import nn\n"
        "class Encoder(nn.Sequential):\n"
        "    def __init__(self, shape):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, 8))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    return tmp_path / "r"


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would take more than 2 GiB ends the test."""
    monkeypatch.setattr(memory, "available", lambda: 2 << 30)


def content(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def said(error: pytest.ExceptionInfo[RunError]) -> str:
    """One readable sentence."""
    text = str(error.value)
    assert 10 < len(text) < 1200
    assert "\n" not in text
    assert "weights_only" not in text
    return text


def config_with(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: {**config, **changes}


def instead(value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda _: value


def each(name: str, *values: Any) -> list[Callable[[dict[str, Any]], Any]]:
    return [config_with(**{name: value}) for value in values]


NESTED = "[" * 50_000
CONFIGS: list[Callable[[dict[str, Any]], Any] | str] = [
    *map(instead, ([], None, 3, "x", True, [["a", 1]], 1.5)),
    *each("hidden", -1, 0, 2**31 - 1, 10**9, 10**30, 1e308, "9" * 5000, True, [8], None),
    *each("latent_dim", -4, 0, 2, 10**8, 2**62, float("nan"), float("inf"), {}, "x"),
    *each("batch_size", 0, -(10**20), [[]], None, 2.5),
    *each("model", "cnn", "info", "", None, ["vanilla"], {"a": 1}, 7, "\ud800", "a\0b"),
    *each("posterior", "ar1", "x" * 4000, "x" * 10_000, [], False),
    *each("latent_order", -1, None, 2**40, 0.5, "no", [2, 1, 0]),
    config_with(learning_rate=float("nan")),
    config_with(data_dir="x\0y"),
    config_with(unknown=1),
    config_with(**{"x" * 100_000: 1}),
    config_with(nested=json.loads("[" * 400 + "]" * 400)),
    NESTED,
    "{" + '"a":{' * 20_000,
    '{"hidden": ' + "1" * 60_000 + "}",
    "",
    "{",
    "nul",
    "\ud800".encode("utf-8", "replace").decode(),
    " " * 2_000_000,
]


@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_a_config_in_the_metadata(run: Path, number: int) -> None:
    file, case = run / "model.safetensors", CONFIGS[number]
    weights, metadata = content(file)
    text = case if isinstance(case, str) else json.dumps(case(json.loads(metadata["config"])))
    file.write_bytes(save(weights, {**metadata, "config": text}))
    with pytest.raises(RunError) as error:
        load_vae(file)
    assert str(file) in said(error)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "null",
            "8",
            "[]",
            "[0, 8, 8]",
            "[-1, -8, 8]",
            "[true, 8, 8]",
            "[1, 8.0, 8]",
            '"1x8x8"',
            "[1, null]",
        ),
        *(
            "{}",
            "[1, 8, 9]",
            "[1, 99999, 99999]",
            f"[{2**62}, 4, 4]",
            "[1, 8, 8" + ", 1" * 9000 + "]",
            NESTED,
        ),
        *("", "[64]", "[" + "1" * 5000 + "]", "[[1, 8, 8]]", "[1, 1e999, 1]", "[NaN, 8, 8]"),
    ],
)
def test_an_image_shape_in_the_metadata(run: Path, text: str) -> None:
    file = run / "model.safetensors"
    weights, metadata = content(file)
    file.write_bytes(save(weights, {**metadata, "image_shape": text}))
    if text == "[64]":  # as many pixels, which a dense network cannot tell apart
        assert load_vae(file).image_shape == (64,)
        return
    with pytest.raises(RunError) as error:
        load_vae(file)
    assert str(file) in said(error)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.update({"head.linear.weight": w["head.linear.weight"].T.contiguous()}),
        lambda w: w.update({"head.linear.weight": torch.zeros(())}),
        lambda w: w.update({"head.linear.bias": torch.zeros(5, dtype=torch.int64)}),
        lambda w: w.update({"head.linear.bias": torch.zeros(5, dtype=torch.complex64)}),
        lambda w: w.update({"latent_order": torch.tensor([0, 0, 9])}),
        lambda w: w.update({"latent_order": torch.tensor([0.0, 1.0, 2.0])}),
        lambda w: w.pop("decoder.0.bias"),
        lambda w: w.clear(),
        lambda w: w.update({k: v.to(torch.float8_e4m3fn) for k, v in w.items() if v.is_floating_point()}),
        lambda w: w.update({"x" * 3000: torch.zeros(1)}),
    ],
)
def test_weights_that_are_none(run: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = run / "model.safetensors"
    weights, metadata = content(file)
    change(weights)
    file.write_bytes(save(weights, metadata))
    with pytest.raises(RunError) as error:
        load_vae(file)
    assert str(file) in said(error).replace("\n", "")


def text_file(path: Path) -> None:
    path.write_text("It was a dark and stormy night.\n" * 99)


def sparse_file(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(1 << 40)


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (1 << 24))


class _Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


class _Hungry:
    def __reduce__(self) -> Any:
        return bytearray, (1 << 44,)


def pickled(thing: object, whole: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        if not whole:
            path.write_bytes(pickle.dumps(thing))
            return
        torch.save({"state_dict": thing, "rhovae": {}}, path)

    return write


FILES: list[Callable[[Path], object]] = [
    text_file,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"PK\3\4" + b"\0" * 60),
    lambda path: path.write_bytes(os.urandom(999)),
    lambda path: path.mkdir(),
    lambda path: os.mkfifo(path),
    lambda path: path.symlink_to("/dev/zero"),
    sparse_file,
    bomb,
    pickled(_Code(), False),
    pickled(_Code(), True),
    pickled(_Hungry(), True),
    lambda path: torch.save([1], path),
    lambda path: torch.save({"state_dict": 3, "rhovae": None}, path),
    lambda path: torch.save({"state_dict": {3: 3}, "rhovae": {}}, path),
    lambda path: torch.save({"state_dict": {"w": "w"}, "rhovae": {}}, path),
    lambda path: path.write_bytes(struct.pack("<Q", 2**63) + b"{}"),
    lambda path: path.write_bytes(struct.pack("<Q", 90) + b'{"a":' * 18),
]


def read(run: Path, name: str) -> object:
    """What reads this file of a run."""
    readers: dict[str, Callable[[], object]] = {
        "checkpoints/last.ckpt": lambda: load_model(
            Run(run), TrainConfig(hidden=8, latent_dim=3, latent_order=1), load_dataset("digits")
        ),
        "model.safetensors": lambda: load_vae(run),
        "config.yaml": lambda: Run(run).config(),
        "metrics.json": lambda: read_result(Run(run)),
        "environment.json": lambda: Run(run).note_start(TrainConfig()),
        "history.csv": lambda: read_history(run / name),
    }
    return readers[name]()


@pytest.mark.parametrize(
    "name", ["checkpoints/last.ckpt", "model.safetensors", "config.yaml", "metrics.json"]
)
@pytest.mark.parametrize("number", range(len(FILES)))
def test_something_else_in_a_files_place(
    run: Path, name: str, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / name
    path.unlink()
    FILES[number](path)
    with pytest.raises(RunError) as error:
        read(run, name)
    said(error)
    assert name.rpartition("/")[2] in said(error)
    assert not Path("executed").exists()
    if name.endswith("ckpt") and number % 4 == 0:
        for command in (["evaluate", "r"], ["train", "--resume", "r", "--epochs", "2"]):
            assert main(command) == 2
            printed = capsys.readouterr().err
            assert printed.count("\n") == 1
            assert "weights_only" not in printed


@pytest.mark.parametrize("share", [0.02, 0.4, 0.9, 0.999])
def test_cut_off(run: Path, share: float) -> None:
    for path in (run / "checkpoints/last.ckpt", run / "model.safetensors"):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RunError):
        read_checkpoint(run / "checkpoints/last.ckpt")
    with pytest.raises(RunError):
        load_vae(run)


YAMLS = [
    "!!python/object/apply:os.mkdir ['executed']",
    "hidden: !!python/object/apply:os.mkdir ['executed']",
    "hidden: !!python/name:os.mkdir",
    "backend: os",
    "data_dir: ~nobody-at-all/x",
    "[" * 3000,
    "a: " + "{a: " * 3000,
    "&a [*a]",
    "hidden: &a [*a]",
    "? [a]\n: 1",
    "? {a: 1}\n: 1",
    "hidden: 2001-99-99",
    "hidden: !!int x",
    "hidden: !!bool x",
    "hidden: !!timestamp x",
    "hidden: !!float x",
    "hidden: 0x" + "f" * 9000,
    "hidden: " + "9" * 9000,
    "hidden: .inf",
    "hidden: .nan",
    "hidden: null",
    "dataset: null",
    "model: {a: b}",
    "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "model: *i",
    "model: &a [x,x,x,x]\nhidden: [*a, *a, *a, *a]",
    "null: 1",
    "1: 1",
    "hidden: 8\n\0: 1",
    "hidden: 8\n" * 20_000,
    "\x00\x01",
]


@pytest.mark.parametrize("number", range(len(YAMLS)))
def test_a_config_file(run: Path, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").write_text(YAMLS[number])
    with pytest.raises(RunError) as error:
        load_dataset("digits", Run(run).config().data_dir)
    said(error)
    assert not Path("executed").exists()
    assert main(["evaluate", "r"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        (
            "metrics.json",
            ["[]", "null", "{}", '{"posterior": "rho"}', NESTED, "", "{", '{"posterior": 1}', "9" * 9999],
        ),
        ("environment.json", ["{}", "3", NESTED, "\xff"]),
        (
            "history.csv",
            ["", "epoch\n", "epoch,step\n1,2\n", "epoch,step\n1\n", "\0", "x" * 200_000, "a\n1,2,3\n"],
        ),
    ],
)
def test_tables_and_figures(run: Path, name: str, texts: list[str]) -> None:
    for text in texts:
        (run / name).write_text(text, encoding="latin-1")
        with pytest.raises(RunError) as error:
            read(run, name)
        assert name in said(error)


def wrong(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(checkpoint: dict[str, Any]) -> None:
        part: Any = checkpoint
        for key in keys[:-1]:
            part = part[key]
        if value is KeyError:
            del part[keys[-1]]
        else:
            part[keys[-1]] = value

    return change


WRONG = [
    wrong("global_step", value=-1),
    wrong("global_step", value="12"),
    wrong("epoch", value=2**70),
    wrong("epoch", value=KeyError),
    wrong("loops", value=[]),
    wrong("loops", value={}),
    wrong("loops", "fit_loop", "epoch_progress", "current", "ready", value=-3),
    wrong("loops", "fit_loop", "epoch_progress", value=KeyError),
    wrong("optimizer_states", value=[]),
    wrong("optimizer_states", 0, "state", 0, "exp_avg", value=torch.zeros(3)),
    wrong("optimizer_states", 0, "state", 1, "exp_avg_sq", value=torch.zeros(8, dtype=torch.int32)),
    wrong("optimizer_states", 0, "state", 99, value={}),
    wrong("optimizer_states", 0, "param_groups", 0, "lr", value=1e9),
    wrong("optimizer_states", 0, "param_groups", 0, "amsgrad", value=True),
    wrong("optimizer_states", 0, "param_groups", 0, "params", value=[0]),
    wrong("state_dict", "model.head.linear.bias", value=torch.zeros(1).expand(1 << 40)),
    wrong("state_dict", "model.latent_order", value=torch.tensor([0, 7, 1])),
    wrong("rhovae", "history", value=None),
    wrong("rhovae", "history", value=[{"epoch": 1}]),
    wrong("rhovae", "history", 0, "test_kl", value="low"),
    wrong("rhovae", "train_sums", value=torch.zeros(2)),
    wrong("rhovae", "elapsed", value=None),
    wrong("rhovae", "random", value={}),
    wrong("rhovae", "random", "torch", value=torch.zeros(3, dtype=torch.uint8)),
    wrong(
        "rhovae", "random", "numpy", value=("MT19937", torch.zeros(624, dtype=torch.uint32), 10**6, 0, 0.0)
    ),
    wrong("rhovae", "random", "python", value=(3, (1, 2, 3), None)),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_checkpoint_with_something_else_in_it(
    run: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    WRONG[number](checkpoint)
    torch.save(checkpoint, path)
    before = path.read_bytes()
    assert main(["train", "--resume", "r", "--epochs", "2"]) == 2
    printed = capsys.readouterr().err
    assert "last.ckpt" in printed
    assert printed.count("\n") == 1
    assert path.read_bytes() == before


def name_code(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("encoder: null", "encoder: evil:Encoder"))
    weights, metadata = content(run / "model.safetensors")
    settings = {**json.loads(metadata["config"]), "encoder": "evil:Encoder"}
    (run / "model.safetensors").write_bytes(save(weights, {**metadata, "config": json.dumps(settings)}))


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "--from", "r"],
        ["sample", "--from", "r/model.safetensors"],
        ["sample", "r"],
        ["evaluate", "r"],
        ["train", "--resume", "r"],
        ["train", "--resume", "r", "--decoder", "evil:Encoder"],
        ["train", "--config", "r/config.yaml", "--out", "s"],
        ["compare", "--config", "r/config.yaml", "--posteriors", "rho", "--out", "s"],
        ["compare", *SMALL, "--threads", "1", "--latent-order", "1", "--posteriors", "rho", "--resume", "c"],
        ["reproduce", "--config", "r/config.yaml", "--out", "s"],
    ],
)
def test_no_file_has_its_code_run(run: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name_code(run)
    Path("c").mkdir()
    shutil.copytree("r", "c/rho")
    assert main(command) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    if "--decoder" not in command:
        assert "names 'evil:Encoder' as its encoder: the module 'evil' would have been imported" in printed
        assert "--trust-code" in printed
    assert not Path("imported").exists()
    assert not Path("s").exists()


def test_code_is_run_where_it_is_trusted_or_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name_code(run)
    with pytest.raises(RunError, match="trust_code=True"):
        load_vae(run)
    assert not Path("imported").exists()
    flags = [*SMALL, "--encoder", "evil:Encoder"]
    assert main(["train", *flags, "--out", "own"]) == 0
    printed = capsys.readouterr().out
    assert "python -m rhovae train --resume own --encoder evil:Encoder" in printed
    # the command that is printed names what it trusts
    assert main(["train", "--resume", "own", "--encoder", "evil:Encoder", "--epochs", "2"]) == 0
    assert main(["train", "--resume", "own", "--trust-code", "--epochs", "3"]) == 0
    assert load_vae("own", trust_code=True).latent_dim == 3
    assert load_vae("own", trust_code=frozenset({"evil:Encoder"})).latent_dim == 3
    for other in (frozenset({"good:Encoder"}), "evil:Encoder", 1):
        with pytest.raises(RunError, match="would have been imported"):
            load_vae("own", trust_code=other)  # type: ignore[arg-type]
    # the flag says otherwise than the file, whose encoder nobody needs
    Path("c.yaml").write_text("encoder: worse:Encoder\nepochs: 1\nhidden: 8\niwae_samples: 2\n")
    assert main(["train", "--config", "c.yaml", "--encoder", "evil:Encoder", "--out", "other"]) == 0


def test_a_report_trusts_what_its_command_names(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["reproduce", *SMALL[:2], *SMALL[4:], "--dataset", "digits", "--latent-dims", "3", "--seeds", "1"]
    flags += ["--models", "vanilla", "--posteriors", "diag", "--encoder", "evil:Encoder", "--out", "s"]
    paths = [str(run.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    assert main(flags) == 0
    assert Path("s/report.md").is_file()
    with pytest.raises(RunError, match="would have been imported"):
        read_plan(Path("s"))


def test_plans(tmp_path: Path) -> None:
    for text in ("", "[]", "models: 3", "models: [[a]]", "models: [a]\nposteriors: [b]\nlatent_dims: [true]"):
        (tmp_path / "plan.yaml").write_text(text)
        with pytest.raises(RunError):
            read_plan(tmp_path)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_announce_what_they_like(tmp_path: Path, zipped: bool) -> None:
    sizes = [(2**32 - 1,) * 3, (2**31, 1, 1), (1, 2**16, 2**16), (0, 2**32 - 1, 3), (10**6, 1000, 1000)]
    for shape in sizes:
        raw = struct.pack(">4B3I", 0, 0, 8, 3, *shape) + b"\0" * 4000
        name = "train-images-idx3-ubyte" + (".gz" if zipped else "")
        (tmp_path / name).write_bytes(gzip.compress(raw) if zipped else raw)
        with pytest.raises(RunError) as error:
            load_dataset("mnist", tmp_path)
        assert "train-images" in said(error)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    raw = io.BytesIO()
    with gzip.open(raw, "wb", compresslevel=1) as stream:
        stream.write(struct.pack(">4B3I", 0, 0, 8, 3, 2, 2, 2))
        for _ in range(64):
            stream.write(b"\0" * (1 << 20))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(raw.getvalue())
    with pytest.raises(RunError, match="holds more than 8"):
        load_dataset("mnist", tmp_path)


def test_a_lock_that_is_a_link_empties_nothing(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    out = tmp_path / "out"
    out.mkdir()
    (out / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match="it is a link"), sole_user(out):
        pass
    assert (tmp_path / "precious").read_text() == "data"
