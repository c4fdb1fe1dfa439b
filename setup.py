"""Build the optional extension `fastunlearn._C`; all other metadata is in pyproject.toml.

Without PyTorch or a compiler, or when compiling fails, the pure-Python package installs all the
same: the reason is printed and kept beside the package, where the run-time warning finds it.

Environment:
    FASTUNLEARN_BUILD_EXT=0: install without trying to build.
    FASTUNLEARN_REQUIRE_EXT=1: fail, instead of installing without the extension.
    FASTUNLEARN_WERROR=1: treat compiler warnings in our own sources as errors.
    CXX, MAX_JOBS, CUDA_HOME, TORCH_CUDA_ARCH_LIST: as PyTorch's extension builder reads them.
        Without the last one, CUDA code is compiled for the GPUs that are visible, or for all that
        it knows.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import setuptools
from setuptools import Extension, errors, setup
from setuptools.command.build_ext import build_ext

if int(setuptools.__version__.split(".")[0]) < 77:
    # Older ones reject the licence expression in pyproject.toml with a message that names neither.
    sys.exit(
        f"fastunlearn: setuptools must be >= 77, got {setuptools.__version__}:"
        ' run `pip install "setuptools>=77"` first'
    )

ROOT = Path(__file__).resolve().parent
NAME = "fastunlearn._C"
NOTE = "_C_missing.txt"  # fastunlearn/_extension.py reads it
BUILD_COMMAND = "pip install --no-build-isolation -e ."
CXX_FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
NVCC_FLAGS = ["-O3", "-std=c++17", "-fmad=false", "-Xcompiler=-ffp-contract=off"]
CUDA_HEADER = "include/cuda_runtime.h"
DEVICE_SOURCES = ["csrc/binding/device_ops.cpp", "csrc/binding/devices.cpp"]  # need CUDA's headers
CUDA_ARCHS = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]
BUILD_FAILURES = (
    RuntimeError,  # how torch reports a failed ninja run
    OSError,
    subprocess.SubprocessError,
    errors.BaseError,
    errors.CCompilerError,
)


def flag(name: str, default: str = "0") -> bool:
    return os.environ.get(name, default) == "1"


def find(*patterns: str) -> list[str]:
    """Return the files that match, relative to the root as setuptools wants them."""
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


def name_cuda_home() -> None:
    """Tell torch where the CUDA toolkit is, before it looks for itself.

    It would take the folder above that of `nvcc`, which may be a link or a script far from the
    toolkit's headers and libraries.
    """
    if os.environ.get("CUDA_HOME"):
        return
    nvcc = shutil.which("nvcc")
    local = Path("/usr/local")
    folders = [Path(nvcc).resolve().parent.parent] if nvcc else []
    for folder in [*folders, local / "cuda", *sorted(local.glob("cuda-*"))]:
        if (folder / CUDA_HEADER).exists():
            os.environ["CUDA_HOME"] = str(folder)
            return


def what_is_missing() -> str | None:
    """Return why the extension cannot be built here, or None when it can."""
    if not flag("FASTUNLEARN_BUILD_EXT", "1"):
        return "it was left out on request (FASTUNLEARN_BUILD_EXT=0)"
    compiler = shlex.split(os.environ.get("CXX") or "c++")[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler: {compiler!r} was not found (set CXX to one)"
    try:
        import torch.utils.cpp_extension  # noqa: F401
    except (ImportError, OSError) as error:
        return f"PyTorch is not visible to the build ({error}), as under pip's build isolation"
    return None


def openmp_flags() -> list[str]:
    """Return the flag for OpenMP where there is one: the kernels then share torch's threads."""
    import torch

    if not torch.backends.openmp.is_available():
        return []
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() == 0; }\n")
        command = [*compiler, "-fopenmp", str(source), "-o", str(Path(folder, "probe"))]
        found = subprocess.run(command, capture_output=True).returncode == 0
    return ["-fopenmp"] if found else []


def has_cuda(cuda_sources: list[str]) -> bool:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    nvcc = CUDA_HOME and shutil.which("nvcc", path=os.path.join(CUDA_HOME, "bin"))
    headers = CUDA_HOME and os.path.exists(os.path.join(CUDA_HOME, CUDA_HEADER))
    return bool(cuda_sources and torch.version.cuda and nvcc and headers)


def cuda_archs() -> str:
    """Return what to compile CUDA code for, as TORCH_CUDA_ARCH_LIST has it."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return os.environ["TORCH_CUDA_ARCH_LIST"]
    visible = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    if visible:
        return ";".join(f"{major}.{minor}" for major, minor in sorted(visible))
    command = [os.path.join(CUDA_HOME, "bin", "nvcc"), "--list-gpu-arch"]
    known = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    served = [arch for arch in CUDA_ARCHS if f"compute_{arch.replace('.', '')}" in known]
    return ";".join(served) + "+PTX"


def torch_extension(sources: list[str], headers: list[str]) -> Extension:
    """Return the extension, with CUDA code where there is some and it can be compiled."""
    import torch
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    cuda_sources = find("csrc/cuda/*.cu")
    cuda = has_cuda(cuda_sources)
    werror = flag("FASTUNLEARN_WERROR")
    openmp = openmp_flags()
    cxx = CXX_FLAGS + openmp + ["-Werror"] * werror
    nvcc = NVCC_FLAGS + ["-Werror=all-warnings"] * werror
    version = re.search(r'__version__ = "(.+)"', (ROOT / "fastunlearn/_version.py").read_text())
    macros = {"VERSION": version[1], "CXX_FLAGS": " ".join(cxx)}
    if cuda:
        macros["CUDA_VERSION"] = torch.version.cuda
        macros["CUDA_ARCHS"] = os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_archs()
    else:
        sources = [source for source in sources if source not in DEVICE_SOURCES]
    extension = (CUDAExtension if cuda else CppExtension)(
        NAME,
        sources + (cuda_sources if cuda else []),
        depends=headers,
        define_macros=[(f"FASTUNLEARN_{key}", f'"{value}"') for key, value in macros.items()],
    )
    # As system headers, torch's own warnings do not drown or (-Werror) break ours.
    system = [arg for path in extension.include_dirs for arg in ("-isystem", path)]
    extension.include_dirs = [str(ROOT / "csrc")]
    extension.extra_compile_args = {"cxx": cxx + system, "nvcc": nvcc + system}
    extension.extra_link_args += openmp
    return extension


def optional(base: type[build_ext], missing: str | None) -> type[build_ext]:
    """Return `base` made to install without the extension when `missing`, or when it fails."""

    class OptionalBuildExt(base):
        def run(self) -> None:
            library = Path(self.get_ext_fullpath(NAME))  # asked now: a failed run moves it
            reason = missing
            if reason is None:
                try:
                    super().run()
                except BUILD_FAILURES as error:
                    reason = f"compiling it failed ({type(error).__name__}: {error})"
            note = library.with_name(NOTE)
            note.unlink(missing_ok=True)
            if reason is not None:
                library.unlink(missing_ok=True)  # from an earlier build of other sources
                self.go_on_without(reason, note)

        def go_on_without(self, reason: str, note: Path) -> None:
            message = f"fastunlearn: the compiled extension {NAME} was not built: {reason}"
            if flag("FASTUNLEARN_REQUIRE_EXT"):
                sys.exit(f"{message}; FASTUNLEARN_REQUIRE_EXT=1 makes this an error")
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(reason.splitlines()[0] + "\n", encoding="utf-8")
            print(
                f"{message}\nThe pure PyTorch fallback is installed: it works, slower. To build the"
                f" extension, install PyTorch and a C++17 compiler, then: {BUILD_COMMAND}",
                file=sys.stderr,
            )

    return OptionalBuildExt


def main() -> None:
    sources = find("csrc/binding/*.cpp", "csrc/cpu/*.cpp")
    headers = find("csrc/**/*.h", "csrc/**/*.cuh")
    name_cuda_home()
    missing = what_is_missing()
    if missing is None:
        from torch.utils.cpp_extension import BuildExtension

        extension, base = torch_extension(sources, headers), BuildExtension
    else:
        extension, base = Extension(NAME, sources, depends=headers), build_ext
    setup(ext_modules=[extension], cmdclass={"build_ext": optional(base, missing)})


main()
