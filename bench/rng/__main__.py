"""The noise on record: `make rng-check`, or `python -m bench.rng --help`."""

from __future__ import annotations

import argparse

import torch

from bench.rng import dieharder, normals, report

FOLDER = dieharder.ROOT / "build" / "rng"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.rng", description=__doc__)
    parser.add_argument(
        "--normals", type=int, default=34, metavar="N", help="2^N float32 normals (default 34)"
    )
    parser.add_argument("--orders", nargs="+", default=list(dieharder.ORDERS), choices=list(dieharder.ORDERS))
    parser.add_argument("--jobs", type=int, default=1, help="tests of dieharder at a time (default 1)")
    parser.add_argument("--report", action="store_true", help="run nothing, write down what has been run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def tally(dtype: torch.dtype, count: int) -> normals.Tally:
        name = str(dtype).removeprefix("torch.")
        return normals.check(FOLDER / f"normals-{name}.npz", dtype, dieharder.SEED, count)

    wanted = 0 if arguments.report else 1 << arguments.normals
    tallies = [tally(torch.float32, wanted), tally(torch.float64, wanted >> 4)]
    if not arguments.report:
        report.write(tallies)
        dieharder.check(arguments.orders, arguments.jobs)
        weak = {test for _, test, _ in dieharder.ever_weak(arguments.orders)}
        dieharder.control(weak, arguments.jobs)
    report.write(tallies)


if __name__ == "__main__":
    main()
