"""What runs on a GPU, tried without one: the script, the adapter of the tests, the benchmark."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from core.configurations import OPERATIONS
from core.worlds import build, run
from gpu.device import calls, check, compared, run_there
from rich.console import Console

from benchmarks.gpu import __main__ as command_line
from benchmarks.gpu import measure, peers, plan
from benchmarks.gpu import run as bench
from benchmarks.gpu.measure import timed
from fastunlearn.bench.cases import OURS, Case
from fastunlearn.bench.patterns import Data, make
from fastunlearn.reference import ops as reference

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
NO_GPU = not torch.cuda.is_available()


def load():
    spec = importlib.util.spec_from_file_location("gpu_script", ROOT / "scripts/gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_script"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


script = load()


def stage(code, seconds=60.0, wants=None):
    return script.Stage((sys.executable, "-c", code), seconds, wants)


def results(out, **stages):
    passed = script.run_stages(stages, out, {"gpu": "none"})
    return passed, json.loads((out / "gpu.json").read_text())


# The script ---------------------------------------------------------------------------------------


def test_later_stages_run_after_a_failure_and_a_timeout(tmp_path):
    pid = tmp_path / "pid"
    endless = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)"
    )
    start = time.monotonic()
    passed, body = results(
        tmp_path,
        bad=stage("print('oh'); raise SystemExit(3)"),
        slow=stage(endless, 2.0),
        absent=script.Stage(("no-such-program",), 5.0),
        good=stage("print('figures: {\"bars\": 2}')", wants="bars"),
        idle=stage("print('nothing')", wants="tests"),
    )
    assert not passed and not body["passed"] and time.monotonic() - start < 30
    stages = body["stages"]
    assert {name: one["status"] for name, one in stages.items()} == {
        "bad": "failed",
        "slow": "timed out",
        "absent": "failed",
        "good": "passed",
        "idle": "failed",
    }
    assert (stages["bad"]["exit"], stages["slow"]["exit"]) == (3, None)
    assert stages["good"]["figures"] == {"bars": 2}
    assert all(one["seconds"] >= 0 and one["command"] for one in stages.values())
    assert 2 <= stages["slow"]["seconds"] < 10
    log = (tmp_path / "gpu.log").read_text()
    assert "oh\n" in log and "begun\n" in log and "no-such-program" in log
    assert not running(int(pid.read_text())), "what a stage has started outlives it"


def running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_all_passed(tmp_path):
    passed, body = results(tmp_path / "new", one=stage("pass"), two=stage("pass"))
    assert passed and body["passed"] and body["machine"] == {"gpu": "none"}


def test_a_stage_without_time_left_is_not_begun(tmp_path):
    stages = {"first": stage("import time; time.sleep(1)"), "second": stage("pass")}
    assert not script.run_stages(stages, tmp_path, {}, total=10.5)
    body = json.loads((tmp_path / "gpu.json").read_text())
    assert [one["status"] for one in body["stages"].values()] == ["passed", "no time left"]


@pytest.mark.parametrize(
    ("body", "status", "counts"),
    [
        ("def test_a(record_property): record_property('runs', 7)\n", "passed", (1, 0, 0)),
        ("def test_a(): assert 0\ndef test_b(): pass\n", "failed", (2, 1, 0)),
        ("import pytest\n@pytest.mark.skip\ndef test_a(): pass\n", "failed", (1, 0, 1)),
    ],
)
def test_counts_come_from_the_report_of_the_tests(tmp_path, body, status, counts):
    (tmp_path / "test_x.py").write_text(body)
    options = ("-q", "-p", "no:cacheprovider", "-c", os.devnull, "--junitxml={report}")
    command = (sys.executable, "-m", "pytest", *options, str(tmp_path / "test_x.py"))
    _, found = results(tmp_path, tests=script.Stage(command, 60, "tests"))
    one = found["stages"]["tests"]
    assert one["status"] == status
    assert tuple(one["figures"][n] for n in ("tests", "failures", "skipped")) == counts
    assert one["figures"].get("runs") == (7 if status == "passed" else None)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("========= ERROR SUMMARY: 0 errors", "passed"),
        ("========= ERROR SUMMARY: 2 errors", "failed"),
        ("========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)", "failed"),
        ("Device not supported", "failed"),
    ],
)
def test_a_sanitizer_must_have_counted_and_found_nothing(tmp_path, line, status):
    _, body = results(tmp_path, tool=stage(f"print({line!r})", wants=script.ERRORS))
    assert body["stages"]["tool"]["status"] == status


def test_a_sanitizer_counts_every_process(tmp_path):
    found, clean = (f"print('========= ERROR SUMMARY: {n} errors')" for n in (2, 0))
    _, body = results(tmp_path, tool=stage(f"{found}\n{clean}", wants=script.ERRORS))
    assert body["stages"]["tool"]["status"] == "failed"
    assert body["stages"]["tool"]["figures"] == {script.ERRORS: 2}


def test_time_is_kept_for_a_later_stage(tmp_path):
    later = dataclasses.replace(stage("pass"), kept=30.0)
    stages = {"first": stage("pass"), "later": later, "last": stage("pass")}
    assert script.run_stages(stages, tmp_path, {}, total=70.0)
    limits = [
        one["limit"] for one in json.loads((tmp_path / "gpu.json").read_text())["stages"].values()
    ]
    assert limits[0] == pytest.approx(40, abs=1)
    assert limits[1:] == [60, 60]


@pytest.mark.parametrize("version", [None, "76.1"])
def test_a_tool_that_is_missing_or_old_is_named(monkeypatch, version):
    real = script.installed
    monkeypatch.setattr(
        script, "installed", lambda name: version if name == "setuptools" else real(name)
    )
    with pytest.raises(LookupError, match=f"setuptools >= 77 is needed, got {version}"):
        script.tools()


def test_stages_name_every_test_of_the_gpu():
    words = {word for one in script.STAGES.values() for word in one.command}
    tests = {str(p.relative_to(ROOT)) for p in (ROOT / "tests/gpu").glob("test_*.py")}
    assert tests and tests <= words
    assert {w for w in words if w.startswith("tests/")} == tests


def test_stages_are_chosen_by_name():
    assert list(script.chosen([])) == list(script.STAGES)
    assert list(script.chosen(["bench", "build"])) == ["build", "bench"]
    assert list(script.chosen(["sanitizer"])) == list(script.GROUPS["sanitizer"])
    with pytest.raises(KeyError, match="nonsense"):
        script.chosen(["build", "nonsense"])


def environment_of_the_script(tmp_path, *command):
    """What python gets from the script, where nvcc is a link to that of another folder."""
    home, links = tmp_path / "toolkit", tmp_path / "links"
    for path in (home / "bin/nvcc", home / "include/cuda_runtime.h", tmp_path / "python"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\nenv\n")
        path.chmod(0o755)
    links.mkdir()
    (links / "nvcc").symlink_to(home / "bin/nvcc")
    given = {**os.environ, "PATH": f"{links}:{os.environ['PATH']}", "CUDA_HOME": ""}
    given |= {"PYTHON": str(tmp_path / "python"), "MAKEFLAGS": ""}
    text = subprocess.run(command, env=given, cwd=ROOT, capture_output=True, text=True).stdout
    return home, dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def test_the_toolkit_is_found_behind_a_link(tmp_path):
    home, found = environment_of_the_script(tmp_path, "scripts/gpu.sh")
    assert found["CUDA_HOME"] == str(home.resolve())
    assert found["PATH"].endswith(f":{home.resolve()}/bin")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_gpu_goes_on_after_a_warning(tmp_path):
    _, found = environment_of_the_script(tmp_path, "make", "gpu")
    assert found["FASTUNLEARN_WERROR"] == "0" and found["FASTUNLEARN_REQUIRE_EXT"] == "1"


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
@pytest.mark.parametrize("words", [[], ["nonsense"]])
def test_without_a_gpu_it_says_so_and_runs_nothing(tmp_path, words):
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    command = [ROOT / "scripts/gpu.sh", *words]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.returncode == 2 and not (tmp_path / "out").exists()
    assert ("nonsense" if words else "no GPU here") in answer.stderr


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
def test_tests_of_the_gpu_are_collected_and_skipped_without_one():
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]
    answer = subprocess.run([*command, "tests/gpu"], cwd=ROOT, capture_output=True, text=True)
    last = answer.stdout.strip().splitlines()[-1]
    assert answer.returncode == 0 and "skipped" in last, answer.stdout[-2000:]
    assert not any(word in last for word in ("passed", "failed", "error", "deselected"))


# The adapter --------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_world_that_is_moved_stays_the_same(operation):
    for made in calls(lambda made: made.operation == operation, 6):
        check(made, build(made), CPU)


def test_a_flipped_bit_and_a_missed_version_are_found():
    (made,) = calls(lambda made: made.writes and made.update == "zero" and made.entries[0].numel, 1)
    world = build(made)
    wanted = run(reference, made, world.copy())
    found = run_there(made, world, CPU)
    assert compared(made, wanted, found) is None
    found.bumped[:] = [False] * len(found.bumped)
    assert "version" in compared(made, wanted, found)
    found = run_there(made, world, CPU)
    found.world.buffers[0].view(torch.uint8)[0] ^= 1
    assert "buffers[0]" in compared(made, wanted, found) or "weights[0]" in compared(
        made, wanted, found
    )


# The benchmark ------------------------------------------------------------------------------------


def quiet():
    return Console(file=io.StringIO(), width=150)


def test_benchmark_runs_the_whole_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RUN_SECONDS", 0.0)
    monkeypatch.setattr(measure, "WARM_UP_SECONDS", 0.0)
    console = quiet()
    made = bench.run(tmp_path, 300.0, "x", CPU, 10**7, console)
    planned = list(plan.steps(10**7))
    assert len(made.rows) == len(planned) and not made.broken and not made.left_out
    (path,) = tmp_path.glob("gpu-*.json")
    body = json.loads(path.read_text())
    assert body["kind"] == "gpu" and body["rows"] == made.rows and len(body["bars"]) == 10
    assert {row["verdict"] for row in body["bars"]} >= {"not measured"}  # memory, on a CPU
    measured = {row["what"] for row in body["bars"] if row["measured"] is not None}
    assert measured == {"vs reading the scores", f"vs {plan.TOPK}", "time"}
    first = made.rows[0]
    assert plan.BANDWIDTH in first["floor_ways_ms"] and first["ms"][plan.TOPK] > 0
    assert "vs reading the scores" in console.file.getvalue()


def test_a_peer_that_fails_is_named_with_its_reason(tmp_path, monkeypatch):
    def no_room(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    def missing(*_):
        raise ModuleNotFoundError("No module named 'cupy'", name="cupy")

    monkeypatch.setitem(peers.TOP_K, "full", no_room)
    monkeypatch.setitem(peers.TOP_K, "absent", missing)
    one = bench.Bench(CPU, time.monotonic() + 60, 1e6)
    case = Case(Data("one tensor", 2000))
    one._pace["slow"] = 1.0
    one.measure(plan.Step(case, ("full", "absent", "slow", plan.TOPK)))
    (row,) = one.rows
    assert row["left_out"] == {
        "full": "out of memory",
        "absent": "cupy is not installed",
        "slow": "would take about 2000 s",
    }
    assert plan.TOPK in row["ms"] and OURS in row["ms"]


def test_a_call_of_ours_that_selects_too_few_is_a_failure(monkeypatch):
    real = bench.prepare

    def fewer(parameters, case, method):
        return real(parameters, Case(case.data, k=0.5) if method == OURS else case, method)

    monkeypatch.setattr(bench, "prepare", fewer)
    one = bench.Bench(CPU, time.monotonic() + 60, 1e6)
    one.measure(plan.Step(Case(Data("one tensor", 2000))))
    assert one.broken == [
        "Top-K 1 %, one tensor, 2000, fp32: RuntimeError: 1000 selected instead of 20"
    ]


def test_what_comes_after_the_time_is_left_out():
    one = bench.Bench(CPU, time.monotonic() - 1, 1e6)
    for size in (2000, 3000):
        one.measure(plan.Step(Case(Data("one tensor", size))))
    assert len(one.rows) == 1  # one in any case
    assert one.left_out == ["Top-K 1 %, one tensor, 3000, fp32: out of time"]


def test_foreach_peer_changes_about_as_many():
    parameters = make(Data("20 tensors", 20_000))
    before = torch.cat([p.detach().clone() for p in parameters])
    peers.foreach_bernoulli(parameters, 0.1, 0.1)
    after = torch.cat([p.detach() for p in parameters])
    assert int((before != after).sum()) == pytest.approx(2000, rel=0.2)


def test_calls_take_turns(monkeypatch):
    monkeypatch.setattr(measure, "WARM_UP_SECONDS", 0.0)
    seen = []
    timing = timed([lambda i=i: seen.append(i) for i in range(3)], CPU, 0.0)
    assert seen == [0, 0, 1, 2] and timing.runs == 3  # the first tells how long it takes


def test_a_device_is_warmed_up_by_time():
    times = []
    timed([lambda: times.append(time.perf_counter())], CPU, 0.0)
    assert times[-3] - times[0] >= 0.9 * measure.WARM_UP_SECONDS  # the last three are the measured


def test_cases_are_profiled_after_all_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RUN_SECONDS", 0.0)
    monkeypatch.setattr(measure, "WARM_UP_SECONDS", 0.0)
    profiled = []

    def kernels(self, call):
        profiled.append(len(self.rows))
        return [{"name": "stream", "launches": 2, "us": 1.0}]

    monkeypatch.setattr(bench.Bench, "_kernels", kernels)
    made = bench.run(tmp_path, 300.0, "x", CPU, 10**7, quiet())
    cases = plan.bar_cases(10**7)  # the sizes being one, some are planned twice
    assert len(cases) >= 6 and profiled == [len(made.rows)] * len(cases)
    body = json.loads(next(tmp_path.glob("gpu-*.json")).read_text())
    assert [row["launches"] for row in body["rows"] if row["kernels"]] == [2] * len(set(cases))


def test_plan_begins_with_what_the_bars_need():
    planned = [step.case for step in plan.steps()]
    assert len(plan.bar_cases()) >= 6 and set(plan.bar_cases()) <= set(planned[:9])
    assert len(set(planned)) == len(planned)


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
def test_benchmark_without_a_gpu_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu"])
    assert command_line.main() == 2
    assert "no GPU" in capsys.readouterr().err
