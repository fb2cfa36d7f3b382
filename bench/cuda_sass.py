"""Reading the kernels' machine code: resources, and the instructions an element costs on the path it takes.

A kernel's loop over a row has many paths (aligned or not, noise drawn or given). The one that counts is the
shortest that does what the case at hand has to do, told by the instructions it must pass: logarithms and
sines of the noise, shuffles of the scan, reads and writes of 16 bytes at once.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

KINDS = {
    "integer multiply": r"IMAD(?!\.MOV)|IMUL",
    "float": r"F(FMA|MUL|ADD|SETP|SEL|MNMX|CHK|SET|SWZADD)|HADD2|HFMA2|HMUL2",
    "double": r"D(ADD|FMA|MUL|SETP|MNMX)|MUFU\.\w*64H?|F2F\.F64\S*|F2F\.F32\.F64|I2F\.F64\S*|F2I\S*F64",
    "special": r"MUFU",
    "convert": r"I2F|F2F|F2I|I2I",
    "shuffle": r"SHFL",
    "memory": r"LD[GSC]?\b|LD[GSC]?\.|ST[GS]?\b|ST[GS]?\.|LDL|STL|ULDC|LDCU",
    "control": r"BRA|BSSY|BSYNC|WARPSYNC|BAR|CALL|RET|EXIT|BREAK|NOP|DEPBAR|ELECT",
    "move": r"I?MOV|IMAD\.MOV|UMOV|R2UR|S2R|S2UR|CS2R|R2P|P2R|VOTE",
}
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")


def kind_of(opcode: str) -> str:
    for kind in ("double", "move", *KINDS):
        if re.match(KINDS[kind], opcode):
            return kind
    return "integer and logic"


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def target(self) -> int | None:
        if not self.opcode.startswith("BRA") or self.opcode.startswith("BRA.DIV"):
            return None  # a divergent warp's way, never taken by a whole one
        found = re.search(r"0x([0-9a-f]+)", self.operands) or re.search(r"\.L_x_(\d+)", self.operands)
        return int(found[1], 16) if found else None

    @property
    def always(self) -> bool:
        return not self.predicate and not re.match(r"!?U?P\d", self.operands.strip())

    @property
    def ends(self) -> bool:
        return self.opcode.split(".")[0] in ("EXIT", "RET") and not self.predicate


@dataclass
class Kernel:
    name: str
    instructions: list[Instruction]
    registers: int = 0
    stack: int = 0
    shared: int = 0
    spills: int = field(init=False)

    def __post_init__(self) -> None:
        self.spills = sum(i.opcode.startswith(("LDL", "STL")) for i in self.instructions)
        self.at = {i.address: n for n, i in enumerate(self.instructions)}

    def count(self, opcode: str) -> int:
        return sum(i.opcode.startswith(opcode) for i in self.instructions)

    @property
    def doubles(self) -> list[str]:
        return [i.opcode for i in self.instructions if kind_of(i.opcode) == "double"]

    def loops(self) -> list[tuple[int, int]]:
        """First and last instruction of every loop, the shortest first."""
        found = []
        for n, i in enumerate(self.instructions):
            if i.target is not None and i.target < i.address and i.target in self.at:
                found.append((self.at[i.target], n))
        return sorted(found, key=lambda loop: loop[1] - loop[0])


# What a path has to pass: so many instructions whose opcodes begin so.
Needs = tuple[tuple[str, int], ...]


def _after(needs: Needs, state: tuple[int, ...], opcode: str) -> tuple[int, ...]:
    return tuple(
        min(count, have + opcode.startswith(wanted))
        for (wanted, count), have in zip(needs, state, strict=True)
    )


def shortest(kernel: Kernel, first: int, last: int, needs: Needs) -> list[Instruction] | None:
    """The instructions of the shortest path from `first` to `last`, both included, that meets the needs."""
    code = kernel.instructions
    best: dict[tuple[int, tuple[int, ...]], tuple[int, tuple[int, tuple[int, ...]] | None]] = {}
    start = (first, _after(needs, (0,) * len(needs), code[first].opcode))
    best[start] = (1, None)
    pending = [start]
    while pending:  # every edge costs one: breadth first
        following = []
        for here in pending:
            n, state = here
            if n == last:
                continue
            i = code[n]
            ways = []
            if i.target is not None and i.target in kernel.at:
                ways.append(kernel.at[i.target])
            if not i.ends and not (i.target is not None and i.always):
                ways.append(n + 1)
            for way in ways:
                if not first <= way <= last:
                    continue
                there = (way, _after(needs, state, code[way].opcode))
                if there not in best:
                    best[there] = (best[here][0] + 1, here)
                    following.append(there)
        pending = following
    end: tuple[int, tuple[int, ...]] | None = (last, tuple(count for _, count in needs))
    if end not in best:
        return None
    path = []
    while end is not None:
        path.append(code[end[0]])
        end = best[end][1]
    return path[::-1]


@dataclass
class RowCost:
    """Instructions a thread spends on one tile of a row, and beside its tiles on the row itself."""

    tile: list[Instruction]
    beside: list[Instruction]

    @property
    def kinds(self) -> Counter[str]:
        return Counter(kind_of(i.opcode) for i in self.tile)


def row_cost(kernel: Kernel, tile: Needs, end: Needs) -> RowCost | None:
    """The loop over tiles is the innermost that can meet the needs; the loop over rows is around it."""
    for first, last in kernel.loops():
        path = shortest(kernel, first, last, tile)
        if path is None:
            continue
        outer = [loop for loop in kernel.loops() if loop[0] <= first and loop[1] > last]
        if not outer:
            return None
        before = shortest(kernel, outer[0][0], first, ())
        after = shortest(kernel, last + 1, outer[0][1], end)
        if before is None or after is None:
            return None
        return RowCost(path, before[:-1] + after)
    return None


def demangle(names: Iterable[str]) -> dict[str, str]:
    mangled = list(names)
    done = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    return dict(zip(mangled, done.stdout.splitlines(), strict=True))


def tool(name: str) -> str:
    """The program on PATH, or the one that Triton's package carries."""
    found = shutil.which(name)
    if found:
        return found
    spec = importlib.util.find_spec("triton")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "backends" / "nvidia" / "bin" / name
        if path.is_file():
            return str(path)
    raise SystemExit(f"{name} is needed to read machine code. Run: pip install triton")


def read_cubin(cubin: Path) -> list[Kernel]:
    """Every kernel of a cubin."""

    def printed(name: str, *options: str) -> str:
        command = [tool(name), *options, str(cubin)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    listing, usage = printed("nvdisasm", "-c"), printed("cuobjdump", "--dump-resource-usage")
    resources: Mapping[str, dict[str, int]] = {
        name: {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", numbers)}
        for name, numbers in re.findall(r"Function (\S+?):\n\s*(.*)", usage)
    }
    kernels = []
    for section in re.split(r"\.section\s+\.text\.", listing)[1:]:
        mangled = re.split(r"[,\s]", section, maxsplit=1)[0]
        if mangled in resources:
            r = resources[mangled]
            code = instructions_of(section)
            kernels.append(Kernel(mangled, code, r.get("REG", 0), r.get("STACK", 0), r.get("SHARED", 0)))
    plain = demangle(k.name for k in kernels)
    for kernel in kernels:
        kernel.name = plain[kernel.name].replace("rhovae::cuda::", "").replace("rhovae::", "")
    return kernels


def instructions_of(section: str) -> list[Instruction]:
    """Labels become addresses."""
    labels: dict[str, int] = {}
    waiting: list[str] = []
    parsed: list[tuple[int, str, str, str]] = []
    for text in section.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", text):
            waiting.append(label[1])
        elif found := INSTRUCTION.search(text):
            address = int(found[1], 16)
            labels.update(dict.fromkeys(waiting, address))
            waiting = []
            parsed.append((address, found[2] or "", found[3], found[4]))

    def address_of(label: re.Match[str]) -> str:
        return hex(labels[label[1]]) if label[1] in labels else label[0]

    return [
        Instruction(address, predicate, opcode, re.sub(r"`?\(?(\.L_\w+)\)?", address_of, operands))
        for address, predicate, opcode, operands in parsed
    ]
