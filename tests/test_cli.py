"""The command line: exit codes, one-line errors, what is printed and written."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from fastunlearn.cli import app  # noqa: E402
from fastunlearn.evaluation.methods import METHODS  # noqa: E402

CONFIG = """\
name: Tiny
dataset: digits
model: small_cnn
threads: 1
scenario: {kind: random, fraction: 0.1}
seeds: [0, 1]
train: {epochs: 1}
methods:
  top_k: {k: 0.01, std: 0.1}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return path


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def one_line_error(result) -> str:
    """Return the message of a refused call, after checking its form."""
    assert result.exit_code == 2
    assert result.stderr.startswith("fastunlearn: ") and result.stderr.count("\n") == 1
    assert not result.stdout
    return result.stderr


def test_run_writes_the_report_and_prints_a_table(config, tmp_path):
    out = tmp_path / "out"
    result = invoke("run", config, "--out", out)
    assert result.exit_code == 0, result.output
    for word in ("Tiny", "Original", "Retrained", "Top-K", "Forget", "Retain", "Test", "Seconds"):
        assert word in result.stdout
    assert str(out / "report.html") in result.stdout.replace("\n", "")
    assert "seed 1 (2/2)  4/4 Metrics" in result.stderr
    assert {p.name for p in out.iterdir()} >= {"results.json", "summary.md", "report.html"}
    again = tmp_path / "again"
    assert invoke("report", out / "results.json", "--out", again).exit_code == 0
    assert (again / "summary.md").read_text() == (out / "summary.md").read_text()


def test_audit_adds_a_generator_and_anchors_and_prints_what_they_are_worth(tmp_path):
    path = tmp_path / "tiny.yaml"
    block = "spdgan: {max_steps: 3, width: 4, references: [1], anchors: [0.5]}\n"
    path.write_text(CONFIG.replace("[0, 1]", "[0]") + block)
    out = tmp_path / "out"
    result = invoke("audit", path, "--out", out)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    for words in (
        "Unlearning",
        "50 % kept",
        "Gain over plain accuracy: ",
        "Anchors: ",
        "Degrees: ",
    ):
        assert words in text
    assert {p.name for p in out.iterdir()} >= {"spdgan", "pictures", "results.json", "report.html"}
    page = (out / "report.html").read_text()
    assert "data:image/png;base64" in page
    again = tmp_path / "again"
    assert invoke("report", out / "results.json", "--out", again).exit_code == 0
    assert (again / "report.html").read_text() == page, "the pictures are found beside the results"


def test_audit_of_a_file_without_a_block_takes_the_defaults(config, tmp_path, monkeypatch):
    from fastunlearn.evaluation import runner

    seen = {}

    def record(config, out, *, resume, progress):
        seen.update(config=config, out=out)
        raise runner.Interrupted(None)

    monkeypatch.setattr(runner, "run", record)
    monkeypatch.chdir(tmp_path)
    assert invoke("audit", config).exit_code == 130
    assert seen["config"].spdgan.references == (1.0, 1.0, 0.33, 0.17) and seen["config"].seeds == (
        0,
        1,
    )
    assert "partly_retrained_0.1" in seen["config"].methods
    assert seen["out"].as_posix() == "runs/audit-tiny"


def test_ctrl_c_reports_what_is_done_and_resume_completes(config, tmp_path, monkeypatch):
    real = METHODS["top_k"]

    def stop(task, method):
        if task.seed == 1:
            raise KeyboardInterrupt
        return real.run(task, method)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "top_k", replace(real, run=stop))
        result = invoke("run", config, "--out", out)
    assert result.exit_code == 130
    assert "1 of 2 seeds" in result.stderr and "--resume" in result.stderr
    assert not json.loads((out / "results.json").read_text())["complete"]
    assert (out / "report.html").exists()
    result = invoke("run", config, "--out", out, "--resume")
    assert result.exit_code == 0 and "seed 0" not in result.stderr
    assert json.loads((out / "results.json").read_text())["complete"]


def test_ctrl_c_before_the_first_seed_writes_nothing(config, tmp_path, monkeypatch):
    def stop(task, method):
        raise KeyboardInterrupt

    monkeypatch.setitem(METHODS, "original", replace(METHODS["original"], run=stop))
    result = invoke("run", config, "--out", tmp_path / "out")
    assert result.exit_code == 130 and "nothing is written" in result.stderr
    assert not list((tmp_path / "out").iterdir())


def test_demo_runs_the_config_of_the_package(tmp_path, monkeypatch):
    from fastunlearn.evaluation import runner

    seen = {}

    def record(config, out, *, resume, progress):
        seen.update(config=config, out=out, resume=resume)
        raise runner.Interrupted(None)

    monkeypatch.setattr(runner, "run", record)
    result = invoke("demo", "--out", tmp_path, "--seeds", 5, "--resume")
    assert result.exit_code == 130
    assert seen["config"].seeds == (0, 1, 2, 3, 4) and seen["config"].dataset == "mnist5k"
    assert seen["out"] == tmp_path and seen["resume"] is True


def test_errors_are_one_line(config, tmp_path):
    assert "absent.yaml" in one_line_error(invoke("run", tmp_path / "absent.yaml"))
    config.write_text(CONFIG + "colour: red\n")
    assert "'colour'" in one_line_error(invoke("run", config))
    config.write_text("a: [\n")
    assert "must be YAML" in one_line_error(invoke("run", config))
    config.write_text("{}")
    assert "results" in one_line_error(invoke("report", config))
    blocked = tmp_path / "file"
    blocked.write_text("")
    config.write_text(CONFIG)
    assert "file" in one_line_error(invoke("run", config, "--out", blocked))


def test_a_missing_package_is_one_line_with_the_remedy(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    message = one_line_error_at_end(invoke("run", config, "--out", tmp_path / "out"))
    assert "scikit-learn" in message and 'pip install "fastunlearn[eval]"' in message


def one_line_error_at_end(result) -> str:
    assert result.exit_code == 2 and "Traceback" not in result.output
    return result.stderr.splitlines()[-1]


def test_defects_are_not_hidden(config, tmp_path, monkeypatch):
    def broken(task, method):
        raise ZeroDivisionError("a defect")

    monkeypatch.setitem(METHODS, "top_k", replace(METHODS["top_k"], run=broken))
    result = invoke("run", config, "--out", tmp_path / "out")
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("k: 1000000000", ["k must be at most", "1000000000"]),
        ("k: 5, exclude: ['*']", ["must leave at least one parameter"]),
    ],
)
def test_a_setting_that_does_not_fit_the_model_is_one_line_with_its_row(
    config, tmp_path, options, words
):
    config.write_text(CONFIG.replace("k: 0.01, std: 0.1", options))
    message = one_line_error_at_end(invoke("run", config, "--out", tmp_path / "out"))
    for word in ("fastunlearn: methods.top_k: ", *words):
        assert word in message
    assert not list((tmp_path / "out").iterdir())


def test_a_value_error_of_another_origin_is_not_hidden(config, tmp_path, monkeypatch):
    def broken(task, method):
        raise ValueError("a defect")

    monkeypatch.setitem(METHODS, "top_k", replace(METHODS["top_k"], run=broken))
    result = invoke("run", config, "--out", tmp_path / "out")
    assert type(result.exception) is ValueError


def test_seeds_must_be_positive():
    assert invoke("demo", "--seeds", 0).exit_code == 2


def test_info_as_text_and_json():
    facts = json.loads(invoke("info", "--json").stdout)
    assert {"fastunlearn", "torch", "python", "backend", "threads", "build"} <= set(facts)
    text = invoke("info").stdout
    assert facts["torch"] in text and "backend" in text and "extension" in text


def bench_plan(monkeypatch):
    """Shorten the plan of `bench` to a case that takes no time."""
    from fastunlearn.bench import quick
    from fastunlearn.bench.cases import Case
    from fastunlearn.bench.patterns import Data

    case = Case(Data("one tensor", 1000))
    monkeypatch.setattr(quick, "plan", lambda: [(case, ("cat + topk + index_add_",))] * 2)
    return quick


def test_bench_prints_a_table_and_writes_results(tmp_path, monkeypatch):
    bench_plan(monkeypatch)
    result = invoke("bench", "--out", tmp_path / "out", "--seconds", 30)
    assert result.exit_code == 0, result.output
    assert "x floor" in result.stdout and "Top-K 1 %, one tensor, 1e3" in result.stdout
    (path,) = (tmp_path / "out").glob("quick-*.json")
    assert f"Results: {path}" in result.stdout
    results = json.loads(path.read_text())
    assert results["environment"]["command"] == "fastunlearn bench --seconds 30"
    assert len(results["rows"]) == 2 and set(results["rows"][0]["ms"]) >= {"fastunlearn"}


def test_bench_refuses_a_bad_folder_before_it_measures(tmp_path, monkeypatch):
    quick = bench_plan(monkeypatch)
    monkeypatch.setattr(quick, "measure", lambda *_, **__: pytest.fail("measured"))
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "file" in one_line_error(invoke("bench", "--out", blocked))
    assert invoke("bench", "--seconds", 0).exit_code == 2


def test_ctrl_c_in_bench_keeps_what_is_done(tmp_path, monkeypatch):
    quick = bench_plan(monkeypatch)
    real, calls = quick.measure, []

    def stop(*arguments, **options):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(quick, "measure", stop)
    result = invoke("bench", "--out", tmp_path, "--seconds", 30)
    assert result.exit_code == 130 and "by Ctrl-C" in result.stdout
    (path,) = tmp_path.glob("quick-*.json")
    assert len(json.loads(path.read_text())["rows"]) == 1


@pytest.mark.parametrize(
    "command", [[], ["demo"], ["run"], ["audit"], ["bench"], ["report"], ["info"]]
)
def test_help(command):
    result = invoke(*command, "--help")
    assert result.exit_code == 0 and "Usage" in result.stdout


def test_python_m_works_and_help_is_fast_to_import():
    code = (
        "import sys, fastunlearn.cli; "
        "heavy = {'torch', 'sklearn', 'matplotlib', 'rich.progress'} & set(sys.modules); "
        "print(heavy - {'torch'})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
    shown = subprocess.run(
        [sys.executable, "-m", "fastunlearn", "--help"], capture_output=True, text=True
    )
    assert shown.returncode == 0 and "demo" in shown.stdout
