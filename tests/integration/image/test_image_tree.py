"""What is in the image, and what is not."""

import importlib.util
import os
import re
import ssl
import stat
import subprocess
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.utils import canonicalize_name

from gateway import __version__
from tests.integration.image.conftest import Image
from tests.integration.image.dockerfile import ROOT

pytestmark = pytest.mark.program("ldd")

MOST_MEGABYTES = 280
SHELLS = {"sh", "bash", "dash", "ash", "busybox", "env", "ls", "cat", "apt", "apt-get", "dpkg", "pip", "pip3", "ldd"}
BUILDERS = ("pip", "setuptools", "wheel", "hatchling", "editables", "ensurepip", "venv", "pkg_resources")
OTHERS = (
    "tests",
    "pytest",
    "hypothesis",
    "mypy",
    "docs",
    ".git",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "test",
)
UNCHECKED = 1
"""The flags in the head of a .pyc that goes by no file's time (PEP 552)."""


def files(tree: Path) -> Iterator[Path]:
    return (path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())


def test_only_what_the_dockerfile_copies_is_sent_to_the_builder(image: Image) -> None:
    assert {name.split("/")[0] for name in image.context} == {
        *("gateway", "loadtest", "requirements", "deploy", "pyproject.toml", "README.md", "LICENSE")
    }
    assert not [name for name in image.context if "__pycache__" in name or name.startswith("loadtest/results")]


def test_the_project_is_whole(image: Image) -> None:
    project = [name for name in image.context if name.startswith(("gateway/", "loadtest/"))]
    assert len(project) > 100
    for name in project:
        assert (image.packages / name).read_bytes() == (image.folder / "context" / name).read_bytes(), name


def test_what_is_installed_is_what_is_locked(image: Image) -> None:
    lock = (ROOT / "requirements" / "extras.lock").read_text("utf-8")
    locked = {
        canonicalize_name(name): version
        for name, version, marker in re.findall(r"^(\S+)==([^\s;]+)(?: ; (.*?))? \\$", lock, re.MULTILINE)
        if not marker or Marker(marker).evaluate()
    }
    found = {
        canonicalize_name(installed.metadata["name"]): installed.version
        for installed in distributions(path=[str(image.packages)])
    }
    assert found.pop(canonicalize_name("poolgate")) == __version__
    assert len(locked) > 40
    assert found == locked


def test_the_only_programs_are_python_and_poolgate(image: Image) -> None:
    programs = {path.name for path in files(image.tree) if path.stat().st_mode & 0o111}
    loaders = {name for name in programs if name.startswith("ld-")}
    pythons = {name for name in programs if re.fullmatch(r"python3\.\d+", name)}
    assert len(loaders) == len(pythons) == 1
    assert programs - loaders - pythons == {"poolgate"}
    assert {path.name for path in (image.tree / "usr" / "local" / "bin").iterdir()} <= {
        *("python", "python3", "poolgate"),
        *pythons,
    }
    assert not {path.name for path in image.tree.rglob("*") if path.is_symlink() or path.is_file()} & SHELLS


@pytest.mark.parametrize("name", [*BUILDERS, *OTHERS])
def test_nothing_that_only_builds_or_tests_is_in_it(image: Image, name: str) -> None:
    standard_library = image.packages.parent
    assert not (image.packages / name).exists()
    assert not (standard_library / name).exists()


def test_nobody_but_root_could_write_and_everyone_can_read(image: Image) -> None:
    for path in image.tree.rglob("*"):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode) and path != image.tree / "tmp":
            assert not mode & (stat.S_IWGRP | stat.S_IWOTH | stat.S_ISUID | stat.S_ISGID), path
            assert mode & stat.S_IROTH, path
    assert stat.S_IMODE((image.tree / "tmp").stat().st_mode) == 0o1777


def test_every_link_leads_to_something_in_the_tree(image: Image) -> None:
    links = [path for path in image.tree.rglob("*") if path.is_symlink()]
    assert links
    for link in links:
        seen = link
        for _ in range(10):
            if not seen.is_symlink():
                break
            target = seen.readlink()
            seen = image.tree / target.relative_to("/") if target.is_absolute() else seen.parent / target
            seen = Path(os.path.normpath(seen))
        assert seen.is_relative_to(image.tree), link
        # A folder on the way may be a link as well, to a place from the tree's root.
        assert seen.exists() or (image.tree / "usr" / seen.relative_to(image.tree)).exists(), link


def test_no_file_names_the_folder_it_was_built_in(image: Image) -> None:
    built_in = str(image.folder).encode()
    assert [path for path in files(image.tree) if built_in in path.read_bytes()] == []
    assert list(image.tree.rglob("*.pth")) == []


def test_the_commands_name_the_interpreter_of_the_image(image: Image) -> None:
    first = (image.tree / "usr" / "local" / "bin" / "poolgate").read_text("utf-8").splitlines()[0]
    interpreter = image.tree / first.removeprefix("#!/")
    assert first.startswith("#!/")
    assert interpreter.is_file()
    assert interpreter.stat().st_mode & stat.S_IXOTH


def test_the_project_and_the_standard_library_are_compiled_and_do_not_go_by_a_files_time(image: Image) -> None:
    standard_library = image.packages.parent
    for source in [*(image.packages / "gateway").rglob("*.py"), *standard_library.glob("*.py")]:
        compiled = image.tree / Path(importlib.util.cache_from_source(str(source)))
        assert compiled.read_bytes()[4] == UNCHECKED, source


def test_root_and_the_images_user_have_names(image: Image) -> None:
    users = [line.split(":") for line in (image.tree / "etc" / "passwd").read_text().splitlines()]
    groups = [line.split(":") for line in (image.tree / "etc" / "group").read_text().splitlines()]
    assert {(user[0], user[2]) for user in users} == {("root", "0"), ("nonroot", "65532")}
    assert {(group[0], group[2]) for group in groups} == {("root", "0"), ("nonroot", "65532")}
    assert "hosts: files dns" in (image.tree / "etc" / "nsswitch.conf").read_text()


def test_there_is_one_list_of_authorities(image: Image) -> None:
    bundle = image.packages / "certifi" / "cacert.pem"
    openssl = Path(ssl.get_default_verify_paths().openssl_cafile)
    for place in (Path("/etc/ssl/certs/ca-certificates.crt"), openssl):
        assert (image.tree / place.relative_to("/")).readlink() == Path("/", bundle.relative_to(image.tree))


@pytest.mark.program("dpkg-query")
def test_a_scanner_learns_which_packages_of_debian_the_libraries_are_of(image: Image) -> None:
    """It goes by these lists: a library that none of them names would never be found weak."""
    lists = image.tree / "var" / "lib" / "dpkg" / "status.d"
    assert "ID=" in (image.tree / "etc" / "os-release").read_text("utf-8")
    assert "libc6" in {path.name for path in lists.iterdir()}
    for path in lists.iterdir():
        told = path.read_text("utf-8").splitlines()
        assert {f"Package: {path.name}", "Status: install ok installed"} < set(told)
        assert any(line.startswith("Version: ") for line in told)
    ours = {
        path.relative_to(image.tree)
        for folder in ("lib", "usr/lib")
        for path in image.tree.glob(f"{folder}/*-gnu/*.so*")
    }
    assert ours
    listed = {
        Path(line).relative_to("/")
        for path in lists.iterdir()
        for line in subprocess.run(
            ["dpkg-query", "--listfiles", path.name], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    }
    unknown = {path for path in ours if not {path, Path("usr", path), Path(*path.parts[1:])} & listed}
    assert unknown == set()


def test_it_is_small(image: Image) -> None:
    # Most of it: the kubernetes package (its models), the interpreter, cryptography, uvloop. The last line of the run
    # says how much it is.
    assert 50 < image.megabytes < MOST_MEGABYTES
