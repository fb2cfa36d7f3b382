"""The process that makes the calls. It may die of them: a file says what it was at, for its parent."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
import warnings

import torch

from tests.fuzz.call import Call, Wrong
from tests.fuzz.draw import ordinary
from tests.fuzz.hostile import hostile
from tests.fuzz.job import Job

MEMORY = 8 << 30  # of addresses: a call that asks for the whole machine's memory is refused before it has it


def call_of(seed: int, number: int) -> Call:
    """One call in four is hostile."""
    return hostile(seed, number) if number % 4 == 3 else ordinary(seed, number)


def prepare() -> None:
    """Memory that nobody wrote is NaN, there is little of it, and a warning of the library's is a failure."""
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # whose shadow alone is larger
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", message="rhovae")


def fault_of(call: Call) -> str | None:
    try:
        call.check()
    except Wrong as wrong:
        return str(wrong)
    except Exception as error:  # whatever else comes is a finding too
        return f"raised {type(error).__name__}: {str(error)[:1500]}"
    return None


def work(job: Job) -> None:
    """Prints a line of JSON for each call that went wrong, and at the end the number after the last one."""
    prepare()
    progress = os.open(job.progress, os.O_WRONLY) if job.progress else None
    number, end = job.first, None if job.calls is None else job.first + job.stride * job.calls
    while (end is None or number < end) and (job.until is None or time.time() < job.until):
        if progress is not None:
            os.pwrite(progress, b"%20d" % number, 0)
        call = call_of(job.seed, number)
        fault = fault_of(call)
        if fault is not None:
            print(json.dumps({"number": number, "fault": fault, "call": call.describe()}), flush=True)
        number += job.stride
    print(json.dumps({"next": number}), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        work(Job(**json.loads(sys.argv[1])))
