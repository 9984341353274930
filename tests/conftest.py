"""What many tests share: a profile for property tests, and recordings of a small ext4 volume."""

from __future__ import annotations

import functools
from pathlib import Path

import factory
import pytest
from hypothesis import settings

from cbtlab.case import Case
from cbtlab.errors import InputError
from cbtlab.lab.laboratory import prepare

# A busy machine must not fail a property: no limit on the time of one example.
settings.register_profile("cbtlab", deadline=None, print_blob=True)
settings.load_profile("cbtlab")


@pytest.fixture(scope="session")
def office(tmp_path_factory: pytest.TempPathFactory) -> factory.Recording:
    """Return the recording of `factory.office`; not to be spoiled: copy it first."""
    missing = factory.missing_tools()
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian: e2fsprogs)")
    return factory.office(tmp_path_factory.mktemp("office"))


@pytest.fixture(scope="session")
def office_case(office: factory.Recording, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Return the case of the recording; not to be changed."""
    return office.case(tmp_path_factory.mktemp("case") / "office")


@pytest.fixture
def spoiled(office: factory.Recording, tmp_path: Path) -> factory.Recording:
    """Return a copy of the recording, to be spoiled."""
    return office.copy(tmp_path / "spoiled")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the long files where several processes share the tests, so that none ends late.

    A file stays in one process, with what it has set up.
    """
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("vm") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that boots a kernel where that cannot be had, and say why."""
    if item.get_closest_marker("vm"):
        reason = _no_laboratory()
        if reason:
            pytest.skip(reason)


@functools.cache
def _no_laboratory() -> str:
    try:
        prepare()
    except InputError as error:
        return f"no virtual machine: {error}"
    return ""
