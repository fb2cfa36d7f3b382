"""Random calls for as long as one likes: python -m tests.fuzz --minutes 60 (make fuzz).

Each worker is a process of its own. One that dies, or that a call holds up, is reported with the seed and the
call, and another goes on behind it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.job import Job

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300  # seconds for one call


class Worker:
    """A child at work on its share of the calls."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.folder = tempfile.TemporaryDirectory(prefix="rhovae-fuzz-")
        self.next = job.first
        self._start()

    def _file(self, name: str) -> Path:
        return Path(self.folder.name) / name

    def _start(self) -> None:
        done = (self.next - self.job.first) // self.job.stride
        calls = None if self.job.calls is None else self.job.calls - done
        progress = self._file("progress")
        progress.write_text("")
        job = self.job._replace(first=self.next, calls=calls, progress=str(progress))
        self.moved, self.seen = time.monotonic(), ""
        with self._file("out").open("w") as out, self._file("err").open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker", json.dumps(job._asdict())],
                cwd=ROOT,
                stdout=out,
                stderr=err,
            )

    def _findings(self) -> list[dict[str, Any]]:
        found = []
        for line in self._file("out").read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def look(self) -> list[dict[str, Any]] | None:
        """None while it works; else what it found, after which it is at work again unless `done`."""
        at = self._file("progress").read_text()
        if at != self.seen:
            self.moved, self.seen = time.monotonic(), at
        held_up = time.monotonic() - self.moved > PATIENCE
        if held_up:
            self.process.kill()
            self.process.wait()
        if self.process.poll() is None:
            return None
        found = self._findings()
        if found and "next" in found[-1]:
            self.next = found.pop()["next"]
            return found
        found.append(self._death(int(at or self.next), held_up))
        self.next = found[-1]["number"] + self.job.stride
        if not self.done:
            self._start()
        return found

    def _death(self, number: int, held_up: bool) -> dict[str, Any]:
        code = self.process.returncode
        how = f"died with {code}" if code >= 0 else f"died of {signal.Signals(-code).name}"
        how = f"took more than {PATIENCE} s" if held_up else how
        said = self._file("err").read_text()
        # Of a sanitizer's report what went wrong and where, else the end of what was said.
        report = re.search(r"(ERROR: \w+Sanitizer|runtime error)[^\n]*\n(.*\n){0,12}", said)
        text = report[0] if report else said[-800:]
        return {"number": number, "fault": f"{how}\n{text}".strip(), "call": described(self.job.seed, number)}

    @property
    def done(self) -> bool:
        job = self.job
        if job.calls is not None and self.next >= job.first + job.stride * job.calls:
            return True
        return job.until is not None and time.time() >= job.until


def described(seed: int, number: int) -> str:
    from tests.fuzz.worker import call_of  # torch, which most runs never need here

    return call_of(seed, number).describe()


def kind_of(finding: dict[str, Any]) -> str:
    """The fault without its numbers, and whose it is: findings of a kind are counted, the first is shown."""
    head, fault = finding["call"].splitlines()[0], finding["fault"].splitlines()[0]
    extreme = ", extreme" if "extreme" in head else ""
    change = re.search(r"\[(\w+): ", head)
    fault = re.sub(r"\(.*?\)|[-+]?\b\d[\w.+-]*|\binf\b", "#", fault)
    return f"{head.split(' ')[0]}{extreme} {change[1] if change else ''}: {fault}"[:110]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, help="of all calls (else drawn, and printed)")
    parser.add_argument("--minutes", type=float, help="how long (else --calls)")
    parser.add_argument("--calls", type=int, default=1000, help="how many, without --minutes (1000)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first call (0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (one a core)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    seed = secrets.randbits(32) if options.seed is None else options.seed
    print(f"seed {seed}, {options.workers} workers, from call {options.first}", flush=True)
    until = None if options.minutes is None else time.time() + 60 * options.minutes
    workers = []
    for index in range(options.workers):
        share = len(range(index, options.calls, options.workers))
        job = Job(seed, options.first + index, options.workers, None if until else share, until)
        workers.append(Worker(job))
    return watch(seed, workers)


def watch(seed: int, workers: list[Worker]) -> int:
    """Prints what comes up, the first of each kind in full, until all are done."""
    kinds: Counter[str] = Counter()
    working = list(workers)
    try:
        while working:
            time.sleep(0.1)
            for worker in list(working):
                found = worker.look()
                if found is None:
                    continue
                for finding in found:
                    kind = kind_of(finding)
                    kinds[kind] += 1
                    if kinds[kind] == 1:
                        again = f"python -m tests.fuzz --seed {seed} --first {finding['number']} --calls 1"
                        print(f"\n{finding['fault']}\n  {finding['call']}\n  again: {again}", flush=True)
                if worker.done or worker.process.poll() is not None:
                    working.remove(worker)
    finally:
        for worker in workers:
            worker.process.kill()
    calls = sum((w.next - w.job.first) // w.job.stride for w in workers)
    print(f"\nseed {seed}: {calls} calls, {sum(kinds.values())} findings of {len(kinds)} kinds")
    for kind, count in kinds.most_common():
        print(f"{count:6d}  {kind}")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
