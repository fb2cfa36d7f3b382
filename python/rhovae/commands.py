"""The command line: ``python -m rhovae train | evaluate | sample | compare | reproduce | demo | doctor``."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rhovae.config import ConfigError, TrainConfig, add_flags, given_flags, read_yaml, resolve
from rhovae.files import RunError, check_writable, write_json
from rhovae.footprint import check_samples
from rhovae.memory import require
from rhovae.models import MODELS
from rhovae.posteriors import POSTERIORS
from rhovae.runs import Run, free_name, new_folder, resume_command, resume_config
from rhovae.signals import Stopped, stoppable

if TYPE_CHECKING:
    from rhovae.data import ImageData
    from rhovae.models import VAE

# at this size threads cost more than they bring, and on a busy machine they wait for each other
_DEMO = {"epochs": 100, "batch_size": 64, "iwae_samples": 256, "threads": 1}
_REPRODUCE = {"dataset": "fashion-mnist", "epochs": 15, "iwae_samples": 500, "threads": 1}
_MOST_SEEDS = 10_000
_DEMO_POSTERIORS = ("diag", "rho", "ar1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    A user's mistake ends in one line on stderr and exit status 2; SIGINT, SIGTERM and SIGHUP in the command
    that goes on, and 130, 143 or 129.
    """
    parsed = _parser().parse_args(arguments)
    given = sys.argv[1:] if arguments is None else list(arguments)
    parsed.again = ["python", "-m", "rhovae", *given]
    try:
        with stoppable():
            parsed.run(parsed)
            sys.stdout.flush()  # at the interpreter's end it would be too late to answer a closed pipe
    except RunError as error:
        full = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)
        _complain(parsed, f"{error}; then go on with: {shlex.join(parsed.again)}" if full else str(error))
        return 2
    except BrokenPipeError:  # the reader of what is printed has had enough
        _let_go(sys.stdout)
        return 128 + signal.SIGPIPE
    except OSError as error:  # a file where a folder should be, no permission
        _complain(parsed, f"{error}; give another path")
        return 2
    except (Stopped, KeyboardInterrupt) as stopped:
        status = stopped.status if isinstance(stopped, Stopped) else 128 + signal.SIGINT
        by = signal.Signals(status - 128).name
        if os.environ.get("RANK", "0") == "0":  # the others of a torchrun know no folder
            _complain(parsed, f"stopped by {by}; go on with: {shlex.join(parsed.again)}")
        return status
    except ImportError as error:
        if error.name is None or error.name.startswith("rhovae"):
            raise
        _complain(parsed, f"{error.name} is not installed; pip install 'rhovae-ext[train]'")
        return 2
    return 0


def _complain(parsed: argparse.Namespace, text: str) -> None:
    try:
        print(f"rhovae {parsed.command}: {text}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    except OSError:  # the terminal is gone, which must not change the exit status
        _let_go(sys.stdout)
        _let_go(sys.stderr)


def _let_go(stream: TextIO) -> None:
    """Keep Python from flushing, as it ends, into a pipe or terminal that nobody reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rhovae",
        description="Variational autoencoders with correlated (AR(1)) Gaussian posteriors.",
        epilog="example:\n  python -m rhovae demo\n  python -m rhovae train --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str, text: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help,
            description=text,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    train = command(
        "train",
        _train,
        "train a VAE, evaluate it, write its pictures",
        "Train a VAE into a new folder under runs/, then evaluate it on the test split. The folder gets\n"
        "config.yaml, environment.json, history.csv, tensorboard/, checkpoints/last.ckpt, metrics.json and\n"
        "pictures. Run it under torchrun to train with several processes.",
        "python -m rhovae train --dataset digits --posterior ar1 --epochs 50",
    )
    _add_trust(train)
    train.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings (like config.yaml)")
    where = train.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="DIR", help="folder, new or empty (default: numbered)")
    where.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in this folder")
    add_flags(train)

    evaluate = command(
        "evaluate",
        _evaluate,
        "ELBO, likelihood and active units of a trained run",
        "Print negative ELBO, reconstruction, KL, IWAE-K negative log-likelihood (the posterior,\n"
        "correlations included, as proposal) and active units of a run, as JSON in nats per image\n"
        "with standard errors.",
        "python -m rhovae evaluate runs/digits-vanilla-rho-1 --iwae-samples 500",
    )
    evaluate.add_argument("folder", type=Path, help="folder of a run")
    _add_trust(evaluate)
    evaluate.add_argument("--split", choices=("test", "train"), default="test", help="images (default: test)")
    evaluate.add_argument("--iwae-samples", type=_positive, metavar="N", help="K (default: as trained)")
    evaluate.add_argument("--data-dir", metavar="DIR", help="folder of the data (default: as trained)")
    evaluate.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON here")

    sample = command(
        "sample",
        _sample,
        "pictures from a trained run",
        "Write a grid of samples from the prior and a sheet of reconstructions as PNG; with --from, the\n"
        "samples alone, which need no data set.",
        "python -m rhovae sample runs/digits-vanilla-rho-1 --count 100 --out pictures",
    )
    _add_trust(sample)
    source = sample.add_mutually_exclusive_group(required=True)
    source.add_argument("folder", type=Path, nargs="?", help="folder of a run")
    source.add_argument(
        "--from",
        dest="weights",
        type=Path,
        metavar="PATH",
        help="model.safetensors, or a folder with one, such as a run",
    )
    sample.add_argument("--count", type=_positive, default=64, metavar="N", help="samples (default: 64)")
    sample.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the samples (default: 0)")
    sample.add_argument("--data-dir", metavar="DIR", help="folder of the data (default: as trained)")
    sample.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: the run's folder)")

    compare = command(
        "compare",
        _compare,
        "train several posteriors and print one table",
        "Train one run per posterior with the same settings and print a Markdown table of the test figures;\n"
        "the folder also gets table.md and results.json.",
        "python -m rhovae compare --dataset fashion-mnist --epochs 15 --posteriors diag rho iso ar1",
    )
    compare.add_argument(
        "--posteriors", nargs="+", metavar="NAME", help="which (default: the --config file's, or all)"
    )
    compare.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    _add_trust(compare)
    _add_folder(compare)
    add_flags(compare, leave_out=("posterior",))

    reproduce = command(
        "reproduce",
        _reproduce,
        "the paper's experiments: models x posteriors x seeds, one report",
        "Train every model with every posterior and seed, several runs at a time, and write one report with\n"
        "tables, curves and sample grids. Stopped, the same command goes on where it was. A folder keeps to\n"
        "the settings that it was begun with. The objective of the authors' published code is the posterior\n"
        "'published', which has to be asked for (docs/audit.md).",
        "python -m rhovae reproduce --models vanilla beta --latent-dims 10 32 --jobs 2 --out report",
    )
    _add_trust(reproduce)
    reproduce.add_argument(
        "--models", nargs="+", metavar="NAME", help="which (default: the --config file's, or all)"
    )
    reproduce.add_argument(
        "--posteriors", nargs="+", metavar="NAME", help="which (default: the --config file's, or all)"
    )
    reproduce.add_argument(
        "--latent-dims",
        nargs="+",
        type=_positive,
        metavar="N",
        help="d (default: the --config file's, or 10)",
    )
    reproduce.add_argument("--seeds", type=_seeds, default=5, metavar="N", help="runs of each (default: 5)")
    reproduce.add_argument(
        "--jobs", type=_positive, default=1, metavar="N", help="runs at a time (default: 1)"
    )
    reproduce.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    reproduce.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder, new or to go on in"
    )
    add_flags(reproduce, leave_out=("model", "posterior", "latent_dim", "seed"), **_REPRODUCE)

    demo = command(
        "demo",
        _demo,
        "a first look: three posteriors on the bundled digits",
        "Train diag, rho and ar1 briefly on the images that scikit-learn carries and print one table.",
        "python -m rhovae demo",
    )
    _add_folder(demo)
    add_flags(demo, leave_out=("posterior",), **_DEMO)

    command(
        "doctor",
        _doctor,
        "versions, build and backends, and why one is missing",
        "Print what is installed, how it was built, and which backends work here; put it into bug reports.",
        "python -m rhovae doctor",
    )
    return parser


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-code", action="store_true", help="import and run the networks that a file names, not a flag"
    )


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder, new or empty (default: numbered)")
    parser.add_argument(
        "--resume", type=Path, metavar="DIR", help="go on in this folder, with the same settings"
    )


def _seeds(text: str) -> int:
    value = _positive(text)
    if value > _MOST_SEEDS:
        raise argparse.ArgumentTypeError(f"must be at most {_MOST_SEEDS}, got {value}")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be from 0 to 2^63 - 1, got {value}")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _train(arguments: argparse.Namespace) -> None:
    from rhovae.comparison import finish
    from rhovae.data import load_dataset
    from rhovae.training import check_end, check_epochs, check_machine, check_model, fit, is_first_process

    flags = given_flags(arguments)
    if arguments.resume:
        if arguments.config:
            raise ConfigError("--resume goes on with the run's own config.yaml; leave out --config")
        run = Run.open(arguments.resume)
        config = resume_config(run, flags, arguments.trust_code)
        check_machine(config)
        check_epochs(run, config)
        data = load_dataset(config.dataset, config.data_dir)
        check_end(run.folder, check_model(config, data))
    else:
        config = resolve(arguments.config, flags, arguments.trust_code)
        check_machine(config)
        # what is not there must not leave a folder behind
        data = load_dataset(config.dataset, config.data_dir)
        check_end(arguments.out or Path("runs"), check_model(config, data))
        run = Run.create(config, arguments.out) if is_first_process() else Run(Path("runs"))
    first = is_first_process()
    if first:
        arguments.again = resume_command(run.folder, config)
        run.note_start(config)
        print(f"run: {run.folder} (if stopped: {shlex.join(arguments.again)})", flush=True)
        if arguments.resume and not run.checkpoint.exists():
            print("no checkpoint yet: beginning again from step 0", flush=True)
    model = fit(run, config, data, resume=arguments.resume is not None)
    if first:
        result = finish(run, config, model, data)
        _print_result(result)
        print(
            f"written to {run.folder}: metrics.json, history.csv, model.safetensors, {_pictures(run.folder)}"
        )


def _evaluate(arguments: argparse.Namespace) -> None:
    import json

    from rhovae.evaluation import evaluate
    from rhovae.training import noise_seed

    if arguments.output:
        _check_output(arguments.output)
    run, config, model, data = _open(arguments)
    samples = arguments.iwae_samples or config.iwae_samples
    check_samples(samples, data.image_shape)
    images = data.test if arguments.split == "test" else data.train
    metrics = evaluate(
        model,
        images,
        iwae_samples=samples,
        seed=noise_seed(config.seed, "evaluate"),
        training_batch=config.batch_size,
    )
    result = {"run": str(run.folder), "split": arguments.split, **metrics.as_dict()}
    print(json.dumps(result, indent=2))
    if arguments.output:
        write_json(result, arguments.output)


def _check_output(path: Path) -> None:
    # a link, such as /dev/stdout, would be replaced
    taken = path.is_symlink() or (path.exists() and not path.is_file())
    if taken or not path.parent.is_dir():
        raise ConfigError(f"--output {path} must be a file, no link or device, in a folder that exists")
    check_writable(path.parent)


def _sample(arguments: argparse.Namespace) -> None:
    from rhovae import pictures

    if arguments.weights:
        from rhovae.weights import load_vae

        path = arguments.weights
        beside = path if path.is_dir() else path.parent
        picture = free_name((arguments.out or beside) / "samples.png")
        model = load_vae(path, trust_code=arguments.trust_code)
        _check_count(arguments.count, model)
        print(pictures.write_samples(model, picture, count=arguments.count, seed=arguments.seed))
        return
    run, _, model, data = _open(arguments)
    _check_count(arguments.count, model)
    folder = arguments.out or run.folder
    picture = free_name(folder / "samples.png")
    print(pictures.write_samples(model, picture, count=arguments.count, seed=arguments.seed))
    print(pictures.write_reconstructions(model, data.test, free_name(folder / "reconstructions.png")))


def _check_count(count: int, model: VAE) -> None:
    from rhovae.pictures import sheet_bytes

    require(sheet_bytes(model, count), f"a picture of --count {count} samples", "give fewer")


def _compare(arguments: argparse.Namespace) -> None:
    config = resolve(arguments.config, given_flags(arguments), arguments.trust_code)
    in_file = read_yaml(arguments.config) if arguments.config else {}
    posteriors = _several(arguments.posteriors, in_file, "posterior", POSTERIORS.names())
    _compare_with(config, posteriors, arguments, "compare")


def _several(
    given: list[Any] | None, in_file: Mapping[str, Any], name: str, default: Sequence[Any]
) -> tuple[Any, ...]:
    """What is asked for of a setting that these commands vary: by flag, else in the file, else all."""
    if given is None:
        found = in_file.get(name, in_file.get(name.replace("_", "-")))
        given = None if found is None else [found]
    chosen = tuple(default if given is None else given)
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"a {name.replace('_', ' ')} is named twice; name each once")
    return chosen


def _reproduce(arguments: argparse.Namespace) -> None:
    from rhovae.data import load_dataset
    from rhovae.report import write_report
    from rhovae.reproduction import Plan, keep_plan, run_all, sole_user
    from rhovae.training import check_end, check_machine, check_model, use_threads

    def say(text: str) -> None:
        print(text, flush=True)

    config = resolve(arguments.config, given_flags(arguments), arguments.trust_code, **_REPRODUCE)
    if config.seed != 0:
        raise ConfigError(
            f"{arguments.config}: seed is {config.seed}, but a report has the seeds 0 to --seeds"
        )
    in_file = read_yaml(arguments.config) if arguments.config else {}
    plan = Plan(
        _several(arguments.models, in_file, "model", MODELS.names()),
        _several(arguments.posteriors, in_file, "posterior", POSTERIORS.names()),
        _several(arguments.latent_dims, in_file, "latent_dim", (10,)),
        arguments.seeds,
        config,
    )
    jobs = plan.jobs()
    check_machine(config)
    data = load_dataset(config.dataset, config.data_dir)
    disk = sum(check_model(job, data) for job in jobs if job.seed == 0) * plan.seeds
    check_end(arguments.out, 0 if (arguments.out / "report.md").exists() else disk)
    with sole_user(arguments.out) as lock:
        keep_plan(plan, arguments.out)
        run_all(plan, arguments.out, arguments.jobs, lock, say)
        use_threads(config)
        command = ["python", "-m", "rhovae", *sys.argv[1:]]
        say(f"written: {write_report(plan, arguments.out, command, say)}")


def _demo(arguments: argparse.Namespace) -> None:
    config = resolve(None, given_flags(arguments), False, **_DEMO)
    folder = _compare_with(config, _DEMO_POSTERIORS, arguments, "demo")
    print("\npictures:")
    for picture in sorted(folder.glob("*/*.png")):
        print(f"  {picture}")


def _compare_with(
    config: TrainConfig, posteriors: Sequence[str], arguments: argparse.Namespace, name: str
) -> Path:
    from rhovae.comparison import compare, markdown
    from rhovae.data import load_dataset
    from rhovae.training import check_end, check_machine, check_model, is_first_process

    if not is_first_process():
        raise ConfigError("compare and demo run in one process; use train under torchrun")
    for posterior in posteriors:
        config.replace(posterior=posterior)
    check_machine(config)
    data = load_dataset(config.dataset, config.data_dir)
    disk = sum(check_model(config.replace(posterior=posterior), data) for posterior in posteriors)
    out, resume = arguments.out, arguments.resume
    check_end(resume or out or Path("runs"), disk)
    if resume and not any((resume / posterior / "config.yaml").exists() for posterior in posteriors):
        raise RunError(f"{resume} holds no run of these posteriors; leave out --resume to begin")
    if not resume and out is not None and out.exists() and any(out.iterdir()):
        raise RunError(
            f"{out} is not empty and a run never overwrites another; give another --out, or, if "
            f"it is this command's own, --resume {out}"
        )
    folder: Path = resume or out or new_folder(Path("runs"), f"{name}-{config.dataset}")
    # --out may stay: --resume goes before it
    arguments.again += [] if resume else ["--resume", str(folder)]
    results = compare(posteriors, config, data, folder, say=lambda text: print(text, flush=True))
    print(
        f"\n{config.dataset}, {config.model}, d = {config.latent_dim}, {config.epochs} epochs; nats per image"
    )
    print()
    print(markdown(results))
    print(f"\nwritten to {folder}: table.md, results.json, and a run folder per posterior")
    return folder


def _doctor(_: argparse.Namespace) -> None:
    from rhovae.doctor import report

    print(report())


def _open(arguments: argparse.Namespace) -> tuple[Run, TrainConfig, Any, ImageData]:
    from rhovae.data import load_dataset
    from rhovae.training import check_backend, load_model, use_threads

    run = Run.open(arguments.folder)
    config = run.config(arguments.trust_code)
    check_backend(config)
    use_threads(config)
    data = load_dataset(config.dataset, arguments.data_dir or config.data_dir)
    return run, config, load_model(run, config, data), data


def _print_result(result: dict[str, Any]) -> None:
    from rhovae.comparison import markdown

    print(markdown([result]))


def _pictures(folder: Path) -> str:
    return ", ".join(sorted(picture.name for picture in folder.glob("*.png")))
