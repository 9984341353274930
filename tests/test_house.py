"""The repository's own rules: one list of dependencies, no outputs in notebooks, clean code."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
STAGES = (  # a module reads the stages before its own, never one after it
    ("errors", "units", "progress", "bits", "rules"),
    ("record",),
    ("manifest", "folders", "bitmap", "qcow2", "images"),
    ("writes",),
    ("pack", "interval", "case"),
    ("gaps", "replay", "phases"),
    ("files", "exclude"),
    ("leftovers",),
    ("plan",),
    ("chain",),
    ("checks",),
    ("audit", "explain", "dry_run"),
    ("plots",),
    ("report",),
    ("notebook",),
    ("lab", "console", "rule_commands", "cli", "__main__", "__init__"),
)


def requirements() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["lab"], *extras["test"]]
    return {re.split(r"[<>=!~]", line)[0].lower(): line for line in lines}


def test_environment_yml_is_in_step_with_pyproject() -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(part["pip"] for part in conda if isinstance(part, dict))
    plain = [part for part in conda if isinstance(part, str)]
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"python{python}" in plain
    listed = {*plain, *pip} - {f"python{python}", "pip", "-e ."}
    assert listed == set(requirements().values())
    assert any(line.startswith("pytsk3") for line in pip)


def test_notebooks_hold_no_outputs() -> None:
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs"), path
            assert cell.get("execution_count") is None, path


def sources() -> list[Path]:
    return sorted((ROOT / "cbtlab").rglob("*.py"))


def test_every_file_says_what_it_is_about() -> None:
    for path in sources():
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_data_flows_one_way() -> None:
    rank = {name: at for at, names in enumerate(STAGES) for name in names}
    for path in sources():
        own = path.relative_to(ROOT / "cbtlab").parts[0].removesuffix(".py")
        assert own in rank, f"{own} has no place in the flow"
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cbtlab"):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("cbtlab.")]
            for name in names:
                stage = [*name.split("."), ""][1]
                if stage in rank:
                    assert rank[stage] <= rank[own], f"{path} imports {name}"


def test_the_recorders_need_nothing_but_python() -> None:
    """They run in a guest that has a bare Python."""
    allowed = {*sys.stdlib_module_names, "cbtlab"}
    for path in (ROOT / "cbtlab" / "record").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                assert module.split(".")[0] in allowed, f"{path} imports {module}"


def test_the_cases_are_small() -> None:
    sizes = {
        folder.name: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for folder in (ROOT / "datasets").iterdir()
        if folder.is_dir()
    }
    assert sum(sizes.values()) < 40 << 20, sizes
    assert max(sizes.values()) < 10 << 20, sizes


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]]
)
def test_the_code_is_clean(command: list[str]) -> None:
    program = Path(sys.executable).parent / command[0]
    if not program.exists() and shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    found = program if program.exists() else command[0]
    done = subprocess.run(
        [str(found), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_of_the_method_names_what_exists() -> None:
    page = (ROOT / "docs" / "method.md").read_text()
    names = re.findall(
        r"`((?:cbtlab|kernel_module|tests|datasets|notebooks)/[^`:]*)(?:::(\w+))?`", page
    )
    assert len(names) > 30
    for name, function in names:
        assert (ROOT / name).exists(), name
        if function:
            assert re.search(rf"^def {function}\(", (ROOT / name).read_text(), re.MULTILINE)
