"""The notebooks run from top to bottom, on the shipped case and on one made here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import factory
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIRST = ROOT / "notebooks" / "01-from-writes-to-verdicts.ipynb"
missing = factory.missing_tools()


def run(path: Path, case: Path | None = None) -> Any:
    """Run a notebook in its own folder, with another case if one is given; return it."""
    notebook = nbformat.read(path, as_version=4)
    if case is not None:
        notebook.cells[0].source = f"CASE = {str(case)!r}"
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    ).execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    return notebook


def shown(notebook: Any) -> str:
    """Return all that a notebook printed or showed as text."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            parts += [output.get("text", ""), data.get("text/markdown", "")]
            parts += [data.get("text/html", ""), data.get("text/plain", "")]
    return "\n".join(parts)


def pictures(notebook: Any) -> int:
    return sum(
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


def check(notebook: Any) -> None:
    """The notebook shows pictures, catches each wrong rule, and ends on verdicts that hold."""
    text = shown(notebook)
    assert pictures(notebook) == 5
    for rule in ("no carry-over", "only written", "zero only written"):
        assert rule in text
    last = notebook.cells[-1].outputs[0]["data"]["text/html"]
    assert "every check holds" in last and "FAILS" not in last


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_names_its_case_first_and_has_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "code"
    assert notebook.cells[0].source.startswith('CASE = "../datasets/')
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert set(cell.metadata) <= {"tags"}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@pytest.mark.slow
@pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")
def test_the_first_notebook_runs_on_a_case_made_here(tmp_path: Path) -> None:
    factory.office(tmp_path / "recording").case(tmp_path / "case")
    check(run(FIRST, tmp_path / "case"))


@pytest.mark.slow
def test_the_first_notebook_runs_on_the_shipped_case() -> None:
    if not (ROOT / "datasets" / "ext4-office" / "case.json").is_file():
        pytest.skip("datasets/ext4-office is not here")
    done = run(FIRST)
    check(done)
    assert "*This recording has no marks.*" not in shown(done)
