"""The benchmark engine: what it measures on, against what, how, and what it says of it."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import fastunlearn as fu
from benchmarks import __main__ as command_line
from benchmarks import check, full
from benchmarks.bars import Bar, Microseconds, bars, quantities, timed_probes
from fastunlearn.bench import child, measure, quick, results
from fastunlearn.bench.cases import FALLBACK, OP, OURS, STEP, Case, Probe, prepare
from fastunlearn.bench.measure import Timing
from fastunlearn.bench.models import models
from fastunlearn.bench.patterns import DTYPES, VALUES, Data, make
from fastunlearn.bench.peers import RANDOM_K, TOP_K
from fastunlearn.bench.picture import pictured, save_picture

ROOT = Path(__file__).parent.parent
SMALL = Data("20 tensors", 2000)
EXACT = [name for name in TOP_K if not name.startswith("SSD")]


def weights(parameters):
    return torch.cat([p.detach().flatten() for p in parameters])


def changed(data, case, method):
    """Indices that a method changes, and the weights after it."""
    parameters = make(data)
    before = weights(parameters)
    prepare(parameters, case, method)()
    after = weights(parameters)
    return (after != before).nonzero().squeeze(1).tolist(), after


@pytest.fixture(autouse=True)
def few_buffers(monkeypatch):
    """So that a test does not make 64 sets of buffers."""
    monkeypatch.setattr(measure, "MOST_SETS", 2)


def some_rows(ms=25.0):
    """Rows as a run on a fast machine would give them."""
    large = Case(Data("one tensor", 10**8))
    rows = []
    for case in (large, replace(large, k=0.5), replace(large, kind="random_k")):
        timings = {Probe(case, name): Timing(40 * ms, 1, 1, 3) for name in case.peers}
        timings[Probe(case)] = Timing(ms, 1, 1, 3)
        timings[Probe(case, case.floors[0])] = Timing(20.0, 1, 1, 3)
        rows.append(results.row(case, timings, {OURS: 24.0}))
    return rows


def quiet_console():
    return Console(file=io.StringIO(), width=150)


# What is measured on.


@pytest.mark.parametrize(
    ("name", "tensors", "numel"),
    [
        ("ResNet-18", 62, 11_689_512),
        ("ResNet-50", 161, 25_557_032),
        ("ViT-B/16", 152, 86_567_656),
        ("BERT-base", 199, 109_482_240),
        ("GPT-2 small", 148, 124_439_808),
        ("Llama-2-7B", 291, 6_738_415_616),
    ],
)
def test_models_have_their_published_sizes(name, tensors, numel):
    shapes = models()[name].values()
    assert (len(shapes), sum(map(math.prod, shapes)), Data(name).numel) == (tensors, numel, numel)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", VALUES)
def test_patterns_are_what_they_are_called(values, dtype):
    parameters = make(Data("20 tensors", 200_000, values, dtype))
    assert {p.dtype for p in parameters} == {p.grad.dtype for p in parameters} == {DTYPES[dtype]}
    score = torch.cat([p.grad.flatten() for p in parameters]).float().abs()
    k = 2000
    threshold = score.topk(k).values[-1]
    above, ties = int((score > threshold).sum()), int((score == threshold).sum())
    if values == "70 % zeros":
        assert (score == 0).float().mean().item() == pytest.approx(0.7, abs=0.01)
    elif values == "all equal":
        assert score.unique().numel() == 1
    elif values == "sorted":
        assert (score.diff() >= 0).all() and score[0] < score[-1]
    elif values == "ties":
        assert above < 0.7 * k and ties > 0.7 * k and above + ties > 1.3 * k
    elif values == "one layer 1e6 times larger":
        scales = sorted(p.grad.float().abs().median().item() for p in parameters)
        assert scales[-1] > 1e4 * scales[-2]
    else:
        assert score.std() > 0.5 and ties < k / 2


# Against what.


@pytest.mark.parametrize("layout", ["one tensor", "20 tensors"])
@pytest.mark.parametrize("peer", EXACT)
def test_top_k_peers_change_the_same_parameters_as_we_do(layout, peer):
    case = Case(Data(layout, 2000), k=0.1)
    chosen = fu.select(make(case.data), fu.TopK(0.1)).indices().tolist()
    assert changed(case.data, case, peer)[0] == chosen


@pytest.mark.parametrize("layout", ["one tensor", "20 tensors"])
@pytest.mark.parametrize("peer", [*RANDOM_K, "SSD: per-tensor dampening"])
def test_other_peers_change_about_as_many(layout, peer):
    case = Case(Data(layout, 20_000), "random_k" if peer in RANDOM_K else "top_k", k=0.1)
    assert len(changed(case.data, case, peer)[0]) == pytest.approx(2000, rel=0.2)


@pytest.mark.parametrize("kind", ["top_k", "random_k"])
def test_our_methods_are_one_and_the_same(kind):
    case = Case(SMALL, kind, 0.1)
    outcomes = [changed(SMALL, case, method) for method in (OURS, OP, STEP, FALLBACK)]
    assert all(torch.equal(after, outcomes[0][1]) for _, after in outcomes)
    assert len(outcomes[0][0]) == 200


@pytest.mark.parametrize("dtype", DTYPES)
def test_floors_change_nothing(dtype):
    for case in (Case(Data("one tensor", 2000, dtype=dtype), kind, k) for kind, k in FLOOR_CASES):
        served = [f for f in case.floors if prepare(make(case.data), case, f) is not None]
        assert served and all(changed(case.data, case, floor)[0] == [] for floor in served)


FLOOR_CASES = [("top_k", 0.01), ("top_k", 0.5), ("random_k", 0.01)]


# How.


class Clock:
    """Stands in for the module `time`; a call takes as long as it says."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def test_runs_are_interleaved_and_slow_ones_are_few_but_spread(monkeypatch):
    order, clock = [], Clock()

    def fake(parameters, case, method):
        def run():
            order.append(method)
            clock.now += {"fast": 0.001, "slow": 0.02}[method]

        return run

    monkeypatch.setattr(measure, "prepare", fake)
    monkeypatch.setattr(measure, "warm_up", lambda *_: None)
    monkeypatch.setattr(measure, "time", clock)
    probes = [Probe(Case(SMALL), name) for name in ("fast", "slow")]
    timings = measure.measure(probes, seconds=0.0301, least=3)
    assert [timings[probe].runs for probe in probes] == [30, 3]
    assert [timings[probe].ms for probe in probes] == pytest.approx([1, 20])
    places = [i for i, name in enumerate(order) if name == "slow"]
    assert places == [1, 11 + 1, 22 + 1, 33 + 1], order  # the first warms up


def test_a_long_first_call_counts(monkeypatch):
    calls = Counter()
    monkeypatch.setattr(measure, "prepare", lambda p, c, m: lambda: calls.update([m]))
    monkeypatch.setattr(measure, "warm_up", lambda *_: None)
    monkeypatch.setattr(measure, "LONG_SECONDS", 0.0)
    timings = measure.measure([Probe(Case(SMALL))], seconds=0, least=1)
    assert calls[OURS] == 1 and timings[Probe(Case(SMALL))].runs == 1


def test_buffers_take_turns_and_exceed_the_cache(monkeypatch):
    monkeypatch.setattr(measure, "last_level_cache_bytes", lambda: 4 * SMALL.size_bytes)
    monkeypatch.setattr(measure, "MOST_SETS", 64)
    assert measure.buffer_sets(SMALL) == 1  # so small that the call itself is measured
    monkeypatch.setattr(measure, "_OVERHEAD_BYTES", 1)
    assert measure.buffer_sets(SMALL) == 16
    assert measure.buffer_sets(Data("one tensor", 100)) == 64
    assert measure.buffer_sets(Data("one tensor", 10**8)) == 1
    seen = []
    monkeypatch.setattr(
        measure, "prepare", lambda p, c, m: lambda: seen.append(p[0].grad.data_ptr())
    )
    measure.measure([Probe(Case(SMALL))], seconds=0, least=15)
    assert len(set(seen[-16:])) == 16


def test_threads_are_set_for_the_call_alone(monkeypatch):
    seen = {}

    def fake(parameters, case, method):
        return lambda: seen.setdefault(method, torch.get_num_threads())

    monkeypatch.setattr(measure, "prepare", fake)
    monkeypatch.setattr(measure, "warm_up", lambda *_: None)
    before = torch.get_num_threads()
    measure.measure([Probe(Case(SMALL), f"{n}", n) for n in (1, 2)], seconds=0, least=1)
    assert seen == {"1": 1, "2": 2} and torch.get_num_threads() == before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory_tells_a_copy_from_a_read():
    torch.ones(5 * 10**7)  # an earlier peak, 190 MiB, that must not hide the later one
    case = Case(Data("one tensor", 4 * 10**6))
    assert child._memory(Probe(case, "read: torch.sum")) < 2
    # The gradients, their magnitudes, values and indices: at least two copies of 15 MiB.
    assert 28 < child._memory(Probe(case, "cat + topk + index_add_")) < 150


def test_a_child_measures_under_its_own_environment():
    probes = [Probe(Case(SMALL)), Probe(Case(SMALL, "random_k"), "scatter: numpy")]
    timings = child.times_under({"FASTUNLEARN_BACKEND": "reference"}, probes, 0.01)
    assert list(timings) == probes[:1]  # there is no scatter over a list
    assert timings[probes[0]].ms > 0


# What is said of it.


def test_row_takes_the_least_floor_and_leaves_it_out_of_the_methods(tmp_path):
    case = Case(SMALL)
    named = {OURS: 6.0, "cat + topk + index_add_": 30.0, case.floors[0]: 3.0, case.floors[1]: 2.0}
    timings = {Probe(case, name): Timing(ms, ms, ms, 3) for name, ms in named.items()}
    timings[Probe(Case(SMALL, k=0.2))] = Timing(99.0, 99.0, 99.0, 3)
    row = results.row(case, timings, threads=2)
    assert row["ms"] == {OURS: 6.0, "cat + topk + index_add_": 30.0} and row["threads"] == 2
    assert row["floor_ms"] == 2.0 and results.times_floor(row) == 3.0
    assert row["label"] == "Top-K 1 %, 20 tensors, 2000, fp32"
    path = results.write(tmp_path / "new" / "a.json", "quick", results.environment("x"), [row])
    read = json.loads(path.read_text())
    assert read["rows"] == [row] and read["schema"] == results.SCHEMA
    assert {"cpu", "cores", "threads", "simd", "torch", "date"} <= set(read["environment"])


def test_quick_writes_results_and_names_what_did_not_fit(tmp_path):
    console = quiet_console()
    planned = [(Case(Data("one tensor", 2000)), EXACT), (Case(Data("one tensor", 10**9)), EXACT)]
    written = quick.run(tmp_path, 0.5, "x", planned, console)
    printed = console.file.getvalue()
    assert "Left out, to end in 0.5 s: Top-K 1 %, one tensor, 1e9, fp32" in printed
    assert "SalUn" in printed and [path.suffix for path in written] == [".json"]


def test_picture_is_drawn_of_large_plain_rows(tmp_path):
    pytest.importorskip("matplotlib")
    rows = some_rows()
    small = {**rows[0], "numel": 10**4}
    assert len(pictured([*rows, small, {**rows[0], "values": "sorted"}])) == 3
    path = save_picture(tmp_path / "a.png", results.environment("x"), rows)
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert save_picture(tmp_path / "b.png", results.environment("x"), [small]) is None


def test_without_matplotlib_a_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    console = quiet_console()
    assert quick.picture_or_word(tmp_path / "a.png", {}, some_rows(), console) == []
    assert 'pip install "fastunlearn[bench]"' in console.file.getvalue()


# The bars.


def test_every_bar_can_be_measured():
    found = bars(2, shrink=10**5)
    assert len({(bar.row, bar.what) for bar in found}) == len(found)
    for probe in {p for bar in found for q in quantities(bar) for p in timed_probes(q)}:
        served = prepare(make(probe.case.data), probe.case, probe.method)
        assert served is not None or "stream_read" in probe.method
    assert not any("threads" in bar.row for bar in bars(1))


@pytest.mark.parametrize(
    ("value", "at_least", "other", "verdict"),
    [
        (1.9, False, None, check.MET),
        (2.1, False, None, check.MISSED),
        (1.0, False, None, check.BEYOND),
        (2.1, True, None, check.MET),
        (1.9, True, None, check.MISSED),
        (3.0, True, None, check.BEYOND),
        (1.9, True, 1.2, check.MET),
        (1.9, True, 1.4, check.MISSED),
        (None, False, None, check.NOT_MEASURED),
    ],
)
def test_verdicts(value, at_least, other, verdict):
    quantity = Microseconds(Probe(Case(SMALL)))
    beyond = 3.0 if at_least else 1.0
    bar = Bar("row", "what", quantity, 2.0, beyond, at_least, "run", (quantity, 1.3))
    assert check.verdict(bar, value, other) == verdict


@pytest.mark.parametrize(("limit", "code"), [(1e9, 0), (1e-9, 1)])
def test_check_exits_by_the_verdicts(tmp_path, monkeypatch, capsys, limit, code):
    bar = Bar("call overhead", "perturb_", Microseconds(Probe(Case(SMALL))), limit, run="a")
    monkeypatch.setattr(check, "bars", lambda *_: [bar])
    monkeypatch.setattr(check, "SECONDS", 0.01)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--check", "--out", str(tmp_path)])
    assert command_line.main() == code
    assert ("MISSED" in capsys.readouterr().out) == bool(code)
    (path,) = tmp_path.glob("check-*.json")
    assert json.loads(path.read_text())["rows"][0]["measured"] > 0


def test_check_refuses_words_of_no_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--check", "--only", "no such bar"])
    assert command_line.main() == 2
    assert "no such bar" in capsys.readouterr().err


def test_full_runs_step_by_step(tmp_path, monkeypatch):
    case = Case(SMALL)
    planned = [full.Step(case, (full.TOPK,)), full.Step(case, threads=(1, 2))]
    planned.append(full.Step(Case(Data("one tensor", 10**15))))
    monkeypatch.setattr(full, "steps", lambda: planned)
    monkeypatch.setattr(full, "SECONDS", 0.01)
    console = quiet_console()
    rows = full.run("x", tmp_path, 1, console)
    assert [row.get("threads") for row in rows] == [None, 1, 2]
    assert "Left out for lack of memory: Top-K 1 %, one tensor, 1e15" in console.file.getvalue()
    (path,) = tmp_path.glob("cpu-*.json")
    assert json.loads(path.read_text())["rows"] == rows


def test_the_plans_name_methods_that_exist():
    for step in full.steps():
        assert set(step.peers) <= {*step.case.peers, FALLBACK}
        assert set(step.memory) <= {*step.case.peers, OURS, FALLBACK}
    for case, peers in quick.plan():
        assert set(peers) <= {*case.peers, FALLBACK}


# The documents.


@pytest.fixture
def update(tmp_path):
    """docs/update.py, reading benchmark results from an empty folder."""
    spec = importlib.util.spec_from_file_location("update", ROOT / "docs/update.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.BENCHMARKS, module.FALLBACK = tmp_path, tmp_path / "fallback.json"
    return module


@pytest.mark.parametrize("name", ["performance", "check", "full", "gpu"])
def test_blocks_say_when_nothing_is_measured(update, name):
    words = "Not yet run on a GPU." if name == "gpu" else "Not measured yet."
    page = f"<!-- {name} -->\nold\n<!-- /{name} -->\n"
    assert update.filled(page) == f"<!-- {name} -->\n{words}\n<!-- /{name} -->\n"


def test_blocks_take_the_newest_results(update, tmp_path):
    facts = results.environment("x")
    for name, ms, date in (("a", 20.0, "2000-01-01"), ("b", 30.0, "2001-01-01")):
        rows = some_rows(ms)
        rows.append({**rows[0], "threads": 2})
        results.write(tmp_path / f"cpu-{name}.json", "full", {**facts, "date": date}, rows)
        values = {Probe(Case(SMALL)): ms}
        bar = Bar("row", "what", Microseconds(Probe(Case(SMALL))), 25e3)
        judged = [check.judge(bar, values, {})]
        results.write(tmp_path / f"check-{name}.json", "check", {**facts, "date": date}, judged)
    line = "| Top-K 1 %, one tensor, 1e8, fp32 | 30 | 13.3 | 1.50 | 24 | topk 40x,"
    assert update.BLOCKS["full"]().count(line) == 1  # not the row of another number of threads
    assert "| row | 3e+04 us what | ≤ 2.5e+04 |" in update.BLOCKS["performance"]()
    assert (
        "| row | what | ≤ 25000 |  | 3e+04 us MISSED | 2e+04 us met |" in update.BLOCKS["check"]()
    )
