"""Instructions per element of the CPU kernels, counted by valgrind: the same on every run.

    make profile        builds bench/kernels.cpp without torch, then runs this

Valgrind knows no AVX-512, so it counts the AVX2 kernels: what a change costs there it costs elsewhere too.
Each case leaves build/profile/CASE.callgrind, for `callgrind_annotate --auto=yes FILE`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build" / "native" / "kernels"
FOLDER = ROOT / "build" / "profile"
# What, type, parameters per row or per step, rows, d.
CASES = [
    ("noise", "float32", "row", 4, 4096),
    ("noise", "float64", "row", 4, 4096),
    *(
        (what, dtype, kind, rows, d)
        for what in ("forward", "backward")
        for dtype, kind, rows, d in (
            ("float32", "row", 1024, 8),
            ("float32", "row", 512, 32),
            ("float32", "row", 256, 65),
            ("float32", "row", 64, 256),
            ("float32", "row", 1, 65_536),
            ("float32", "step", 512, 32),
            ("float32", "step", 64, 256),
            ("bfloat16", "row", 64, 256),
            ("float64", "row", 64, 256),
        )
    ),
]


def instructions(case: tuple[str, str, str, int, int], repeats: int, out: Path) -> int:
    """All that the program executes, starting and ending included."""
    ran = subprocess.run(
        [
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={out}",
            PROGRAM,
            *map(str, case),
            str(repeats),
        ],
        env=os.environ | {"RHOVAE_CPU_CAPABILITY": "avx2"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Collected : (\d+)", ran.stderr)
    if ran.returncode or not found:
        raise SystemExit(f"{' '.join(map(str, case))} could not be profiled:\n{ran.stderr}")
    return int(found[1])


def main() -> None:
    if not shutil.which("valgrind"):
        raise SystemExit("valgrind is not installed. Run: sudo apt install valgrind")
    if not PROGRAM.exists():
        raise SystemExit(f"{PROGRAM} is not built. Run: make profile")
    FOLDER.mkdir(parents=True, exist_ok=True)
    print("| kernel, type, parameters, rows x d | instructions per element, avx2 |\n|---|--:|")
    for case in CASES:
        *words, rows, d = case
        out = FOLDER / f"{'-'.join(map(str, case))}.callgrind"
        # The difference of three runs and one: what is around them falls away.
        per_run = (instructions(case, 3, out) - instructions(case, 1, out)) / 2
        print(
            f"| {', '.join(map(str, words))}, {rows} x {d} | {per_run / (int(rows) * int(d)):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
