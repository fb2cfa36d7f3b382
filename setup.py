"""Builds the compiled module rhovae_ext._C beside the Python packages (metadata: pyproject.toml).

    pip install --no-build-isolation .        into an environment that has torch
    RHOVAE_CUDA=0|1                           forces the decision that is otherwise taken from torch and nvcc
    TORCH_CUDA_ARCH_LIST="9.0"                the GPU architectures; no GPU has to be visible
    RHOVAE_SANITIZE=address,undefined         a module that stops at its first fault, for `make sanitize`
    RHOVAE_CORE=librhovae_core_static.a       CMake's csrc/core and csrc/cpu, in place of their sources

One module serves every Python from 3.10 on, and one series of torch: the wheel's tag and metadata say so.

What was decided is compiled in: the string macros RHOVAE_TORCH_VERSION, RHOVAE_TORCH_COMMIT,
RHOVAE_CXX11_ABI, RHOVAE_CUDA_DECISION ("cpu: <why>" or "cuda: <why>") and RHOVAE_CUDA_ARCHITECTURES
("" without CUDA), and RHOVAE_WITH_CUDA in a build with CUDA.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import setuptools

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
TORCH_FROM, TORCH_BELOW = (2, 11), (2, 16)
PYTHON_FROM = (3, 10)
# One module for all Pythons from there on; those without the GIL have no such ABI before 3.15.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")
SETUPTOOLS_FROM = 77  # the first with the licence field of pyproject.toml; also has bdist_wheel of its own
INSTALL = "pip install --no-build-isolation ."
PREPARE = f"pip install torch 'setuptools>={SETUPTOOLS_FROM}' ninja"


class Decision(NamedTuple):
    cuda: bool
    reason: str

    def __str__(self) -> str:
        return f"{'cuda' if self.cuda else 'cpu'}: {self.reason}"


def stop(problem: str, remedy: str) -> SystemExit:
    """The one form of every refusal: what is wrong, then what to run."""
    return SystemExit(f"\nrhovae-ext cannot be built: {problem}\n  {remedy}\n")


def check_setuptools() -> None:
    """Refuses the setuptools that python3.10 and 3.11 put into a new environment."""
    if int(setuptools.__version__.split(".")[0]) < SETUPTOOLS_FROM:
        raise stop(
            f"setuptools {setuptools.__version__} is installed, {SETUPTOOLS_FROM} or newer is needed.",
            f"Run: {PREPARE} && {INSTALL}",
        )


def torch_requirement(built_for: str | None = None) -> str:
    """The torch that the sources can be compiled for; once compiled, that which they were compiled for."""
    if built_for is None:
        return "torch>={}.{},<{}.{}".format(*TORCH_FROM, *TORCH_BELOW)
    public = built_for.split("+")[0]
    release = re.fullmatch(r"(\d+)\.(\d+)[\d.]*", public)
    if release is None:  # before a release no build promises to run another's modules
        return f"torch=={public}"
    major, minor = int(release[1]), int(release[2])
    return f"torch>={major}.{minor},<{major}.{minor + 1}"


def metadata(built_for: str | None = None) -> dict[str, Any]:
    """setup()'s arguments for what pyproject.toml leaves open."""
    return {"install_requires": [torch_requirement(built_for), "numpy>=1.26"]}


def check_torch() -> Any:
    """torch, imported; refuses one that is missing or outside the supported range."""
    try:
        import torch
    except ImportError as error:
        raise stop(
            f"torch cannot be imported ({error}).\n  It is compiled for the torch installed beside it, which "
            "pip hides from the build unless --no-build-isolation is given.",
            f"Run: {PREPARE} && {INSTALL}",
        ) from None
    match = re.match(r"(\d+)\.(\d+)", torch.__version__)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if not TORCH_FROM <= version < TORCH_BELOW:
        supported = torch_requirement()
        raise stop(
            f"torch {torch.__version__} is installed, {supported} is supported.",
            f"Run: pip install '{supported}' && {INSTALL}",
        )
    return torch


def check_compiler() -> None:
    """Refuses a machine without a C++ compiler or Python's headers; puts pip's ninja on PATH."""
    named = os.environ.get("CXX")
    found = next(
        (c for c in ([named] if named else ["c++", "g++", "clang++"]) if shutil.which(shlex.split(c)[0])), ""
    )
    if not found:
        raise stop(
            f"CXX={named} is not a program that can be run."
            if named
            else "no C++ compiler (c++, g++, clang++) was found.",
            f"Run: sudo apt install g++ (or set CXX to a compiler), then {INSTALL}",
        )
    os.environ["CXX"] = found
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise stop(f"{headers}/Python.h is missing.", f"Run: sudo apt install python3-dev, then {INSTALL}")
    if not shutil.which("ninja"):
        if importlib.util.find_spec("ninja"):
            import ninja

            os.environ["PATH"] = ninja.BIN_DIR + os.pathsep + os.environ.get("PATH", "")
        else:
            print("rhovae-ext: ninja is not installed: one file is compiled at a time (pip install ninja)")


def pip_cuda_folders(major: str) -> list[Path]:
    """Where pip's CUDA packages put their files: nvidia/cu13, or one folder per package for CUDA 12."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    return [
        home
        for folder in folders
        for home in (folder / f"cu{major}", *sorted(folder.glob("cuda_*")))
        if home.is_dir()
    ]


def find_toolkit(major: str) -> Path | None:
    """The CUDA toolkit's folder; one with its headers wins over a lone nvcc (a wrapper on PATH)."""
    on_path = shutil.which("nvcc")
    candidates = [
        *(Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)),
        *([Path(on_path).resolve().parent.parent] if on_path else []),
        Path("/usr/local/cuda"),
        *pip_cuda_folders(major),
    ]
    homes = [home for home in candidates if (home / "bin" / "nvcc").is_file()]
    complete = [home for home in homes if (home / "include" / "cuda_runtime.h").is_file()]
    return next(iter(complete + homes), None)


def nvcc_version(toolkit: Path) -> str:
    printed = subprocess.run(
        [toolkit / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=False
    ).stdout
    match = re.search(r"release (\d+\.\d+)", printed)
    return match[1] if match else "unknown"


def decide(
    wanted: str, torch_version: str, torch_cuda: str | None, nvcc: str | None, sources: int
) -> Decision:
    """CPU or CUDA, and why. `wanted` is RHOVAE_CUDA; torch_cuda and nvcc are versions, None where missing."""
    if wanted not in ("", "0", "1"):
        raise stop(
            f"RHOVAE_CUDA={wanted!r} is neither 0 nor 1.", f"Run: RHOVAE_CUDA=1 {INSTALL} (or 0, or unset)"
        )
    if wanted == "0":
        return Decision(False, "RHOVAE_CUDA=0 asks for it")
    again = f"RHOVAE_CUDA=1 {INSTALL} (or without RHOVAE_CUDA=1 for the CPU alone)"
    if torch_cuda is None:
        problem = f"torch {torch_version} is built without CUDA"
        remedy = f"Install a CUDA build of torch (see https://pytorch.org/get-started), then {again}"
    elif nvcc is None:
        problem = f"torch has CUDA {torch_cuda}, but nvcc is not in CUDA_HOME, on PATH or in /usr/local/cuda"
        remedy = f"Install the CUDA {torch_cuda} toolkit or set CUDA_HOME to it, then {again}"
    elif nvcc.split(".")[0] != torch_cuda.split(".")[0]:
        problem = f"nvcc {nvcc} does not match torch's CUDA {torch_cuda}"
        remedy = f"Set CUDA_HOME to a CUDA {torch_cuda} toolkit, then {again}"
    elif not sources:
        problem = "this version has no CUDA sources (csrc/cuda is empty)"
        remedy = f"Run: {INSTALL} (CUDA tensors are served by the other backends)"
    else:
        return Decision(
            True, f"{'RHOVAE_CUDA=1, ' if wanted else ''}torch has CUDA {torch_cuda} and nvcc is {nvcc}"
        )
    if wanted == "1":
        raise stop(f"RHOVAE_CUDA=1, but {problem}.", remedy)
    return Decision(False, problem)


def architectures(nvcc: str) -> str:
    """TORCH_CUDA_ARCH_LIST, or one binary per major architecture that nvcc knows and PTX for what comes."""
    newest = tuple(int(part) for part in nvcc.split(".")) >= (12, 8)
    return os.environ.get("TORCH_CUDA_ARCH_LIST") or ("8.0;9.0;10.0;12.0+PTX" if newest else "8.0;9.0+PTX")


def sanitizers(kinds: str) -> list[str]:
    """The compiler's and the linker's flags for RHOVAE_SANITIZE."""
    if not kinds:
        return []
    # Without vptr: it asks for type information that torch's libraries keep to themselves.
    return [
        f"-fsanitize={kinds}",
        "-fno-sanitize=vptr",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
    ]


def listed(patterns: Iterable[str]) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in CSRC.glob(pattern))


def remove_others(built: Path) -> None:
    """Removes what earlier builds left beside the module just built: Python would import that instead."""
    for other in sorted(set(built.parent.glob("_C*.so")) - {built}):
        print(f"rhovae-ext: removing {other}, which an earlier build left")
        other.unlink()


def extension() -> dict[str, Any]:
    """setup()'s arguments for the compiled module; stops with one message where it cannot be built."""
    torch = check_torch()
    check_compiler()
    torch_cuda: str | None = torch.version.cuda
    toolkit = find_toolkit(torch_cuda.split(".")[0]) if torch_cuda else None
    nvcc = nvcc_version(toolkit) if toolkit else None
    cuda_sources = listed(["cuda/*.cu", "ops/cuda/*.cpp", "ops/cuda/*.cu"])
    decision = decide(
        os.environ.get("RHOVAE_CUDA", ""), torch.__version__, torch_cuda, nvcc, len(cuda_sources)
    )
    print(f"rhovae-ext: building for torch {torch.__version__}, {decision}", flush=True)

    # -fopenmp at compile time only: at::parallel_for is an OpenMP region inside a header, and its runtime has
    # to be the one that torch ships and at::set_num_threads talks to, not a second one that the linker adds.
    # -std is left to torch, whose headers set it. -g0: many Pythons hand on a -g that doubles the time.
    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    sanitize = sanitizers(os.environ.get("RHOVAE_SANITIZE", ""))
    speed = ["-O1", "-g1"] if sanitize else ["-O3", "-g0"]
    flags = {"cxx": [*speed, "-fno-math-errno", "-fvisibility=hidden", *openmp, *sanitize]}
    macros: list[tuple[str, str | None]] = []
    include = [str(CSRC)]
    arches = ""
    if decision.cuda and nvcc and toolkit and torch_cuda:
        arches = os.environ["TORCH_CUDA_ARCH_LIST"] = architectures(nvcc)
        os.environ["CUDA_HOME"] = str(toolkit)  # read when torch.utils.cpp_extension is imported, below
        include += [str(home / "include") for home in pip_cuda_folders(torch_cuda.split(".")[0])]
        flags["nvcc"] = ["-O3"]
        macros.append(("RHOVAE_WITH_CUDA", None))
    for name, value in (
        ("TORCH_VERSION", torch.__version__),
        ("TORCH_COMMIT", torch.version.git_version),
        ("CXX11_ABI", int(torch.compiled_with_cxx11_abi())),
        ("CUDA_DECISION", decision),
        ("CUDA_ARCHITECTURES", arches),
    ):
        macros.append((f"RHOVAE_{name}", f'"{value}"'))

    core = [os.environ["RHOVAE_CORE"]] if os.environ.get("RHOVAE_CORE") else []
    sources = listed(["ops/*.cpp"] if core else ["core/*.cpp", "cpu/*.cpp", "ops/*.cpp"])

    from torch.utils import cpp_extension

    kind: Any = cpp_extension.CUDAExtension if decision.cuda else cpp_extension.CppExtension
    module = kind(
        name="rhovae_ext._C",
        sources=sources + (cuda_sources if decision.cuda else []),
        depends=listed(["**/*.h", "**/*.cuh"]) + core,
        extra_objects=core,
        include_dirs=include,
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=sanitize,
        py_limited_api=STABLE_ABI,
    )
    cpp_extension.min_supported_cpython = "0x{:02X}{:02X}0000".format(*PYTHON_FROM)

    class Build(cpp_extension.BuildExtension):
        """Keeps the objects: an editable install would compile in a folder that it throws away."""

        def finalize_options(self) -> None:
            super().finalize_options()
            self.build_temp = f"build/temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"

        def run(self) -> None:
            super().run()
            remove_others(Path(self.get_ext_fullpath(module.name)))

    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp{}{}".format(*PYTHON_FROM)}} if STABLE_ABI else {},
        **metadata(torch.__version__),
    }


if __name__ == "__main__":
    # A source archive and the question what the build requires are answered without torch; everything else
    # stops here at once, before pip downloads any dependency.
    compiles = not {"sdist", "egg_info"} & set(sys.argv[1:])
    check_setuptools()
    setuptools.setup(**(extension() if compiles else metadata()))
