"""Apt's sources and Debian's names of kernels: what the laboratory makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbtlab.errors import InputError
from cbtlab.lab import cache, kernels, packages


def sources(folder: Path, name: str, text: str) -> list[str]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    lines = list(packages.debian_sources(folder))
    return [" ".join(word for word in line.split() if word[0] != "[") for line in lines]


def test_the_mirror_of_a_plain_list_serves_all_suites(tmp_path: Path) -> None:
    text = "# a comment\ndeb http://mirror.test/debian bookworm main contrib\n"
    assert sources(tmp_path, "sources.list", text) == [
        "deb http://mirror.test/debian bookworm main",
        "deb http://mirror.test/debian bookworm-updates main",
        "deb http://mirror.test/debian bookworm-backports main",
    ]


def test_security_comes_from_its_own_mirror_in_the_newer_format(tmp_path: Path) -> None:
    text = (
        "Types: deb deb-src\nURIs: http://one.test/debian\nSuites: trixie trixie-updates\n"
        "Components: main\n\n# two\nTypes: deb\nURIs: http://two.test/debian-security\n"
        "Suites: trixie-security\nComponents: main\n"
    )
    lines = sources(tmp_path, "sources.list.d/debian.sources", text)
    assert lines[0] == "deb http://one.test/debian bookworm main"
    assert lines[-1] == "deb http://two.test/debian-security bookworm-security main"


def test_other_peoples_archives_and_disabled_ones_are_no_mirror(tmp_path: Path) -> None:
    text = (
        "Types: deb\nURIs: http://one.test/debian\nSuites: bookworm\nEnabled: no\n\n"
        "Types: deb\nURIs: http://two.test/ubuntu\nSuites: jammy\n"
    )
    with pytest.raises(InputError, match="no mirror of Debian"):
        sources(tmp_path, "sources.list.d/other.sources", text)


def test_a_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(InputError, match=r"no-such-program is missing; .* some-package"):
        packages.require("no-such-program", package="some-package")


def test_the_newest_release_that_has_headers_is_taken() -> None:
    releases = ["6.1.0-9", "6.1.0-10", "6.1.0-11", "6.12.9+deb12", "6.12.10+deb12"]
    images = [f"linux-image-{r}-cloud-amd64" for r in releases]
    images += ["linux-image-6.1.0-99-amd64", "linux-image-6.1.0-99-cloud-amd64-unsigned"]
    headers = [f"linux-headers-{r}-cloud-amd64" for r in releases if r != "6.1.0-11"]
    assert kernels.newest_release("6.1", images, headers) == "6.1.0-10-cloud-amd64"
    assert kernels.newest_release("6.12", images, headers) == "6.12.10+deb12-cloud-amd64"
    assert kernels.newest_release("5.10", images, headers) is None


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(InputError, match=r"6\.1 or 6\.12"):
        kernels.kernel("4.4")


def test_a_folder_of_the_cache_comes_into_being_whole(tmp_path: Path) -> None:
    place = tmp_path / "kernels" / "6.1"

    def fail(draft: Path) -> None:
        (draft / "half").touch()
        raise InputError("apt", "no network")

    with pytest.raises(InputError):
        cache.filled(place, fail)
    assert list(place.parent.iterdir()) == []
    assert cache.filled(place, lambda draft: (draft / "whole").touch()) == place
    assert cache.filled(place, fail) == place, "it is there: nothing is fetched again"
