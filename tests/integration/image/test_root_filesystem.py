"""What assembles the tree: links as they stood, and no tree at all when something is missing."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.integration.image.dockerfile import ROOT

pytestmark = pytest.mark.program("ldd")


@pytest.fixture(scope="module")
def assembling() -> ModuleType:
    spec = importlib.util.spec_from_file_location("root_filesystem", ROOT / "deploy" / "image" / "root_filesystem.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_file_comes_with_every_link_on_the_way(assembling: ModuleType, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "usr" / "lib").mkdir(parents=True)
    (here / "usr" / "lib" / "libx.so.1.2").write_text("x")
    (here / "usr" / "lib" / "libx.so.1").symlink_to("libx.so.1.2")
    (here / "usr" / "lib" / "libx.so").symlink_to(here / "lib" / "libx.so.1")
    (here / "lib").symlink_to("usr/lib")
    root = tmp_path / "root"
    root.mkdir()
    for _ in range(2):  # another library on the same way
        assembling.bring(here / "lib" / "libx.so", root)
    there = root / here.relative_to("/")
    assert (there / "lib").readlink() == Path("usr/lib")
    assert (there / "usr" / "lib" / "libx.so").readlink() == here / "lib" / "libx.so.1"
    assert (there / "lib" / "libx.so.1").read_text() == "x"
    assert sorted(path.name for path in (there / "usr" / "lib").iterdir()) == ["libx.so", "libx.so.1", "libx.so.1.2"]


@pytest.mark.parametrize(
    "said",
    [
        "a.so:\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\tlibgone.so.1 => not found\n",
        "ldd: exited with unknown exit code (139)\n",
    ],
)
def test_a_library_that_is_missing_ends_it(
    assembling: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    ldd = tmp_path / "ldd"
    ldd.write_text(f"#!/bin/sh\ncat << 'end'\n{said}end\n")
    ldd.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SystemExit, match="ldd does not find every library"):
        assembling.libraries([tmp_path / "a.so"])


def test_the_loader_and_what_it_loads_by_name_are_among_the_libraries(assembling: ModuleType) -> None:
    found = assembling.libraries([Path("/usr/bin/env")])
    assert any(library.name.startswith("ld-") for library in found)
    assert any(library.name == "libgcc_s.so.1" for library in found)


def test_it_does_not_add_to_a_tree_that_is_there(assembling: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        assembling.main(tmp_path, tmp_path)
