"""What the documents show runs, and their figures are those of the committed results."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    # 1 % of 20 * 64 + 64 + 64 * 3 + 3 = 1539 parameters
    assert "15 of 1539 parameters perturbed" in capsys.readouterr().out


def test_figures_come_from_the_committed_results() -> None:
    command = [sys.executable, ROOT / "docs/update.py", "--check"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_a_figure_changed_by_hand_is_noticed() -> None:
    update = runpy.run_path(str(ROOT / "docs/update.py"), run_name="update")
    page = (ROOT / "docs/method.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| Retrained |"))
    digit = re.search(r"\d", row)
    assert digit
    other = row[: digit.start()] + str((int(digit[0]) + 1) % 10) + row[digit.end() :]
    assert update["filled"](page.replace(row, other)) == page


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
