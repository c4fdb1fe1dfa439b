"""The build and its absence: build_info, the fallback and its one warning, a light import."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"matplotlib", "sklearn", "torchmetrics", "jinja2", "mlxtend", "typer", "rich"}
INFO_KEYS = {
    "extension",
    "version",
    "compiler",
    "cxx_flags",
    "cxx_standard",
    "torch",
    "cuda",
    "cuda_archs",
    "simd_compiled",
    "simd_runtime",
    "build_type",
}


def load_anew() -> ModuleType:
    """Return `fastunlearn._extension` as in a new process: nothing probed, nothing warned."""
    path = ROOT / "fastunlearn" / "_extension.py"
    spec = importlib.util.spec_from_file_location("extension_under_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Return the module anew, looking for the extension in an empty folder."""
    monkeypatch.delenv("FASTUNLEARN_BACKEND", raising=False)
    module = load_anew()
    monkeypatch.setattr(module, "_FOLDER", tmp_path)
    return module


def warned(module: ModuleType, calls: int = 3) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(calls):
            module.warn_once()
    return [str(w.message) for w in caught]


def plant_build(monkeypatch: pytest.MonkeyPatch, folder: Path, **changed: str) -> Any:
    """Put a stand-in for the extension in `folder`; it fits this process but for `changed`."""
    version = importlib.import_module("fastunlearn._version").__version__
    info = {"version": version, "torch": torch.__version__.split("+")[0], **changed}
    build = SimpleNamespace(build_info=lambda: info, registered=0)

    def register_kernels() -> None:
        build.registered += 1

    build.register_kernels = register_kernels
    (folder / "_C.py").touch()
    monkeypatch.setitem(sys.modules, "fastunlearn._C", build)
    return build


def run_python(code: str, cwd: Path = ROOT, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() + done.stderr.strip()


@pytest.fixture
def info(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return build_info() of the real extension; where one is demanded, absence is a failure."""
    monkeypatch.delenv("FASTUNLEARN_BACKEND", raising=False)
    extension = load_anew()
    if not extension.available():
        assert os.environ.get("FASTUNLEARN_REQUIRE_EXT") != "1", extension.why_unavailable()
        pytest.skip(f"no extension: {extension.why_unavailable()}")
    return extension.build_info()


def test_build_info_says_what_was_built(info: dict[str, Any]) -> None:
    assert set(info) == INFO_KEYS
    assert info["extension"] is True
    assert info["version"] == importlib.import_module("fastunlearn._version").__version__
    assert re.fullmatch(r"(gcc|clang) \d+\..*", info["compiler"])
    assert info["cxx_standard"] == 17
    assert info["torch"] == torch.__version__.split("+")[0]
    assert info["cuda"] is False or re.fullmatch(r"\d+\.\d+", info["cuda"])
    assert bool(info["cuda_archs"]) == bool(info["cuda"])
    assert info["build_type"] in {"release", "debug"}


def test_build_keeps_floating_point_exact(info: dict[str, Any]) -> None:
    flags = info["cxx_flags"].split()
    assert {"-O3", "-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra"} <= set(flags)
    assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"} & set(flags)


def test_simd_levels_are_known_and_ascending(info: dict[str, Any]) -> None:
    levels = ["portable", "avx2", "avx512"]
    for key in ("simd_compiled", "simd_runtime"):
        assert info[key] == levels[: len(info[key])] and info[key], key


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_simd_runtime_agrees_with_the_kernel(info: dict[str, Any]) -> None:
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    avx2 = {"avx2", "f16c", "bmi1", "bmi2", "popcnt"}
    avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
    wanted = {"avx2": avx2, "avx512": avx2 | avx512}
    expected = ["portable"] + [level for level, needs in wanted.items() if needs <= flags]
    assert info["simd_runtime"] == expected


def test_reference_backend_leaves_the_extension_out() -> None:
    code = (
        "import fastunlearn._extension as e; e.warn_once();"
        "print(e.load(), e.available(), e.why_unavailable(), e.build_info())"
    )
    reason = "FASTUNLEARN_BACKEND=reference asks for the fallback"
    assert run_python(code, FASTUNLEARN_BACKEND="reference") == (
        f"None False {reason} {{'extension': False, 'reason': {reason!r}}}"
    )


def test_unknown_backend_is_an_error(fresh: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTUNLEARN_BACKEND", "gpu")
    with pytest.raises(
        ValueError, match="FASTUNLEARN_BACKEND must be one of auto, reference,.*gpu"
    ):
        fresh.load()


def test_fitting_build_is_used_in_silence(
    fresh: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build = plant_build(monkeypatch, tmp_path)
    assert fresh.load() is build and fresh.why_unavailable() is None
    assert build.registered == 1
    assert fresh.build_info()["extension"] is True
    assert warned(fresh) == []


@pytest.mark.parametrize("note", [None, "no C++ compiler: 'c++' was not found (set CXX to one)"])
def test_missing_extension_warns_once_with_reason_and_remedy(
    fresh: ModuleType, tmp_path: Path, note: str | None
) -> None:
    if note is not None:
        (tmp_path / "_C_missing.txt").write_text(note + "\n")
    messages = warned(fresh)
    assert len(messages) == 1
    assert (note or "it is not installed") in messages[0]
    assert fresh.why_unavailable() in messages[0]
    assert "pip install --no-build-isolation -e ." in messages[0]
    assert fresh.build_info() == {"extension": False, "reason": fresh.why_unavailable()}


def test_extension_of_another_copy_is_not_used(
    fresh: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plant_build(monkeypatch, tmp_path)
    (tmp_path / "_C.py").unlink()
    assert fresh.load() is None
    assert fresh.why_unavailable() == "it is not installed"


def test_extension_that_does_not_load_says_so(
    fresh: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def undefined_symbol(name: str) -> ModuleType:
        raise ImportError(f"{name}: undefined symbol: _ZN3c10")

    (tmp_path / "_C.py").touch()
    monkeypatch.setattr(fresh.importlib, "import_module", undefined_symbol)
    assert fresh.load() is None
    assert "cannot be loaded (fastunlearn._C: undefined symbol: _ZN3c10)" in warned(fresh)[0]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"version": "0.0.1"}, "it was built for fastunlearn 0.0.1, this is "),
        ({"torch": "1.13.1"}, "it was built for torch 1.13.1, this is "),
    ],
)
def test_build_for_something_else_is_not_used(
    fresh: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    changed: dict[str, str],
    reason: str,
) -> None:
    build = plant_build(monkeypatch, tmp_path, **changed)
    assert fresh.load() is None
    assert reason in warned(fresh)[0]
    assert build.registered == 0


def test_kernels_of_another_version_do_not_run(info: dict[str, Any], tmp_path: Path) -> None:
    """The build itself, not a stand-in: importing it to ask its version must not register them."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fastunlearn", tmp_path / "fastunlearn", ignore=skip)
    (tmp_path / "fastunlearn" / "_version.py").write_text('__version__ = "9.9.9"\n')
    code = (
        "import torch; from fastunlearn import _extension, _ops;"
        "print(_extension.why_unavailable(), _ops.backend_of('noise', torch.device('cpu')))"
    )
    found = run_python(code, cwd=tmp_path, FASTUNLEARN_BACKEND="auto")
    assert found == f"it was built for fastunlearn {info['version']}, this is 9.9.9 reference"


@pytest.mark.parametrize("level", ["sse9", "AVX2"])
def test_unknown_simd_level_is_an_error(info: dict[str, Any], level: str) -> None:
    code = "try: import fastunlearn; fastunlearn.perturb_\nexcept ValueError as error: print(error)"
    found = run_python(code, FASTUNLEARN_BACKEND="auto", FASTUNLEARN_SIMD=level)
    wanted = "FASTUNLEARN_SIMD must be portable, avx2 or avx512, got"
    assert found == f"fastunlearn: {wanted} '{level}'"


def test_build_for_another_patch_release_of_torch_is_used(
    fresh: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    minor = ".".join(torch.__version__.split(".")[:2])
    plant_build(monkeypatch, tmp_path, torch=f"{minor}.99")
    assert fresh.available()


def test_import_is_light() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import fastunlearn;"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    imported = set(run_python(code, FASTUNLEARN_BACKEND="reference").split())
    assert "fastunlearn" in imported
    assert imported & HEAVY == set()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a copy of what an install needs, so that builds leave the checkout alone."""
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    skip = shutil.ignore_patterns("__pycache__", "*.so", "_C_missing.txt")
    for name in ("csrc", "fastunlearn"):
        shutil.copytree(ROOT / name, copy / name, ignore=skip)
    return copy


def build_environment(**changed: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FASTUNLEARN_", "CXX"))}
    return {**kept, **changed}


def build_ext(source: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=source,
        env=build_environment(**env),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_install_without_a_compiler_works_and_says_why(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--no-deps", "--no-index", "--target", str(target), str(source)],
        env=build_environment(CXX="/nonexistent/c++"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not list((target / "fastunlearn").glob("_C*.so"))
    assert "/nonexistent/c++" in (target / "fastunlearn" / "_C_missing.txt").read_text()
    code = "import fastunlearn._extension as e; print(e.__file__, e.why_unavailable())"
    where, reason = run_python(code, cwd=target, FASTUNLEARN_BACKEND="auto").split(" ", 1)
    assert Path(where).is_relative_to(target)
    assert reason.startswith("it was not built: no C++ compiler: '/nonexistent/c++' was not found")


def test_build_without_a_compiler_prints_one_message(source: Path) -> None:
    done = build_ext(source, CXX="/nonexistent/c++")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("was not built") == 1
    assert "no C++ compiler: '/nonexistent/c++'" in done.stderr
    assert "pip install --no-build-isolation -e ." in done.stderr


def test_required_extension_without_a_compiler_fails(source: Path) -> None:
    done = build_ext(source, CXX="/nonexistent/c++", FASTUNLEARN_REQUIRE_EXT="1")
    assert done.returncode != 0
    assert "no C++ compiler: '/nonexistent/c++'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_failed_compilation_goes_on_without(source: Path) -> None:
    module = source / "csrc" / "binding" / "module.cpp"
    module.write_text(f'#include "no_such_header.h"\n{module.read_text()}')
    for other in set((source / "csrc").rglob("*.cpp")) - {module}:
        other.unlink()  # they would be compiled first, for most of a minute
    stale = source / "fastunlearn" / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    stale.touch()
    done = build_ext(source)
    assert done.returncode == 0, done.stderr
    assert "was not built: compiling it failed" in done.stderr
    assert not stale.exists()
    assert "compiling it failed" in (source / "fastunlearn" / "_C_missing.txt").read_text()


def setup_with_cuda(home: Path, **env: str) -> dict[str, Any]:
    """What setup.py makes of a torch that has CUDA, with the toolkit in `home`; builds nothing."""
    code = f"""
        import json, runpy, setuptools, torch, torch.utils.cpp_extension as extension
        torch.version.cuda, extension.CUDA_HOME = "13.0", {str(home)!r}
        found = {{}}
        setuptools.setup = lambda **arguments: found.update(arguments)
        runpy.run_path("setup.py")
        made = found["ext_modules"][0]
        print(json.dumps([made.sources, dict(made.define_macros), made.libraries]))
    """
    text = run_python(textwrap.dedent(code), **env)
    sources, macros, libraries = json.loads(text.splitlines()[-1])
    return {"sources": sources, "macros": macros, "libraries": libraries}


DEVICE_CODE = {"csrc/binding/device_ops.cpp", "csrc/binding/devices.cpp", "csrc/cuda/write.cu"}


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """Return a CUDA toolkit whose compiler does nothing but name two architectures."""
    home = tmp_path / "toolkit"
    header = home / "include" / "cuda_runtime.h"
    header.parent.mkdir(parents=True)
    header.touch()
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho compute_75\necho compute_90\n")
    nvcc.chmod(0o755)
    return home


@pytest.mark.parametrize(("wanted", "archs"), [("8.6;9.0+PTX", "8.6;9.0+PTX"), ("", "7.5;9.0+PTX")])
def test_cuda_code_is_built_where_there_is_cuda(toolkit: Path, wanted: str, archs: str) -> None:
    if torch.cuda.is_available() and not wanted:
        pytest.skip("the visible GPUs decide")
    found = setup_with_cuda(toolkit, TORCH_CUDA_ARCH_LIST=wanted)
    assert set(found["sources"]) >= DEVICE_CODE
    assert found["macros"]["FASTUNLEARN_CUDA_ARCHS"] == f'"{archs}"'
    assert found["macros"]["FASTUNLEARN_CUDA_VERSION"] == '"13.0"'
    assert "c10_cuda" in found["libraries"]


def test_toolkit_is_found_behind_a_link(toolkit: Path, tmp_path: Path) -> None:
    """As where /usr/local/bin/nvcc is a link: no header is beside it."""
    folder = tmp_path / "elsewhere" / "bin"
    folder.mkdir(parents=True)
    (folder / "nvcc").symlink_to(toolkit / "bin" / "nvcc")
    code = """
        import runpy, setuptools, torch
        torch.version.cuda, torch.cuda._is_compiled = "13.0", lambda: True
        torch.cuda.is_available, torch.cuda.device_count = lambda: False, lambda: 0
        setuptools.setup = lambda **arguments: None
        runpy.run_path("setup.py")
        from torch.utils.cpp_extension import CUDA_HOME
        print([CUDA_HOME])
    """
    path = f"{folder}:{os.environ['PATH']}"
    text = run_python(textwrap.dedent(code), PATH=path, CUDA_HOME="", TORCH_CUDA_ARCH_LIST="9.0")
    assert str([str(toolkit.resolve())]) in text


def test_a_compiler_without_headers_is_no_cuda(toolkit: Path) -> None:
    (toolkit / "include" / "cuda_runtime.h").unlink()
    assert not set(setup_with_cuda(toolkit)["sources"]) & DEVICE_CODE


def test_cuda_code_is_left_out_where_there_is_no_cuda(tmp_path: Path) -> None:
    found = setup_with_cuda(tmp_path)
    assert not set(found["sources"]) & DEVICE_CODE
    assert "csrc/binding/ops.cpp" in found["sources"]
    assert not {name for name in found["macros"] if "CUDA" in name}


def test_every_dependency_is_pinned_for_development() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or newer")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranged = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    needed = {re.match(r"[\w.-]+", name)[0].lower() for name in ranged} - {"fastunlearn"}
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    pins = {line.partition("==")[0].lower() for line in lines if "==" in line}
    assert needed <= pins
    assert all("==" in line or not line or line.startswith("#") for line in lines)
