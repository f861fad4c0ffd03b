#!/usr/bin/env python3
"""Assembles the image's root file system: an interpreter, what was installed, the libraries that both load, no more.

    python root_filesystem.py INSTALLED ROOT

INSTALLED is what `pip install --prefix` has filled; the rest comes from where this runs, and the interpreter is the one
that runs it. What is taken stands in ROOT where it stood, links and all, so that whoever looks for it by its path
(run paths, the loader, a script's first line) finds it. There is no shell, no package manager and no tool in it: not
because someone took them away, but because nobody put them there.
"""

import compileall
import os
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from py_compile import PycInvalidationMode

USER = 65532
PROJECT = "poolgate"
COMMANDS = Path("usr/local/bin")
"""In the tree; the image's PATH."""
UNUSED = (
    *("__pycache__", "site-packages", "dist-packages", "config-*"),
    # To write, build, install and test programs, and to talk to someone at a terminal.
    *("ensurepip", "venv", "distutils", "lib2to3", "pydoc_data", "idlelib", "turtledemo", "turtle.py", "tkinter"),
    *("test", "tests", "_test*.so", "_ctypes_test*.so", "_xxtestfuzz*.so", "xxlimited*.so"),
    *("_tkinter*.so", "curses", "_curses*.so", "readline*.so"),
    # Each brings libraries of its own.
    *("dbm", "_dbm*.so", "_gdbm*.so", "sqlite3", "_sqlite3*.so", "nis*.so", "ossaudiodev*.so"),
)
"""Names in the standard library that stay behind."""
UNTRUE = ("direct_url.json", "__pycache__")
"""Names in the packages that stay behind: where the wheel lay when it was installed."""
SELDOM_READ = re.compile(r"/kubernetes/(aio/)?client/(models|api)/(?!__init__)")
"""The Kubernetes client's models, a file each, imported when someone asks for it; nobody here does."""
LOADED_BY_NAME = ("libgcc_s.so.1",)
"""Whether or not a file names it: glibc loads it when a thread is made to end, and aborts the process without it."""
FOUND = re.compile(r"^\t(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
ACCOUNTS = {
    "etc/passwd": f"root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:{USER}:{USER}:nonroot:/home/nonroot:/sbin/nologin\n",
    "etc/group": f"root:x:0:\nnonroot:x:{USER}:\n",
    # Without it glibc asks the DNS before it looks into /etc/hosts.
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
FOLDERS = ("dev", "proc", "sys", "tmp", "home/nonroot", "etc/poolgate")
"""Where a runtime or a user mounts something; the tree is read-only when they come."""
RELEASE = Path("/etc/os-release")
PACKAGES = Path("var/lib/dpkg/status.d")
"""Where scanners for known weaknesses look in an image that has no package manager: a file for each Debian package."""
AUTHORITIES = Path("etc/ssl/certs/ca-certificates.crt")


def main(installed: Path, root: Path) -> None:
    """Raises `SystemExit` when something that is needed is not here."""
    installed = installed.resolve()
    root.mkdir()
    stdlib = Path(sysconfig.get_path("stdlib"))
    interpreter = Path(os.path.realpath(sys.executable))
    packages = looked_into(interpreter)

    bring(interpreter, root)
    copy(stdlib, within(root, stdlib), *UNUSED)
    copy(filled(installed), within(root, packages), *UNTRUE)
    needed = libraries([interpreter, *binaries(within(root, stdlib)), *binaries(filled(installed))])
    for library in needed:
        if not library.is_relative_to(installed) and not library.is_relative_to(root.resolve()):
            bring(library, root)
    listed(root, needed)

    for name, text in ACCOUNTS.items():
        write(root / name, text)
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    authorities(root, packages)
    scripts = commands(root, packages, interpreter)
    compiled(root, (stdlib, packages))
    loaders = [within(root, library.resolve()) for library in needed if library.name.startswith("ld-")]
    modes(root, {within(root, interpreter), *loaders, *scripts})


def looked_into(interpreter: Path) -> Path:
    """Where an interpreter looks for packages first; it is asked itself, since Debian's own has other places."""
    asked = [str(interpreter), "-I", "-c", "import site; print(site.getsitepackages()[0])"]
    return Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())  # noqa: S603  # ours


def within(root: Path, path: Path) -> Path:
    """Where an absolute path stands in the tree."""
    return root / path.relative_to("/")


def filled(installed: Path) -> Path:
    """The packages in what `pip install --prefix` has filled."""
    (packages,) = installed.glob("lib/python3*/site-packages")
    return packages


def copy(source: Path, target: Path, *without: str) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*without), dirs_exist_ok=True)


def bring(path: Path, root: Path) -> None:
    """A file, and every link on the way to it, at the same place in the tree."""
    here = Path("/")
    parts = list(reversed(path.parts[1:]))
    while parts:
        here = Path(os.path.normpath(here / parts.pop()))
        there = within(root, here)
        if here.is_symlink():
            target = here.readlink()
            if not there.is_symlink():
                there.symlink_to(target)
            parts += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            here = Path("/") if target.is_absolute() else here.parent
        elif here.is_dir():
            there.mkdir(exist_ok=True)
        elif not there.exists():
            shutil.copy2(here, there)


def binaries(folder: Path) -> Iterator[Path]:
    """The files below that the loader reads."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def libraries(files: Iterable[Path]) -> list[Path]:
    """All that the loader would load for these, itself included.

    Raises `SystemExit` when it would not find one.
    """
    asked = ["ldd", *(str(file.resolve()) for file in files)]
    environment = os.environ | {"LC_ALL": "C"}
    told = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)  # noqa: S603  # our files
    if "not found" in told.stdout or not (found := {os.path.normpath(name) for name in FOUND.findall(told.stdout)}):
        raise SystemExit(f"ldd does not find every library:\n{told.stdout}{told.stderr}")
    libc = next(Path(name) for name in found if Path(name).name.startswith("libc."))
    return [Path(name) for name in sorted(found)] + [libc.with_name(name) for name in LOADED_BY_NAME]


def listed(root: Path, files: Iterable[Path]) -> None:
    """Tells scanners which packages of which Debian these files are of. Elsewhere there is nobody to ask."""
    if (asking := shutil.which("dpkg-query")) is None:
        return

    def told(*words: str) -> str:
        return subprocess.run([asking, *words], capture_output=True, text=True, check=False).stdout  # noqa: S603  # ours

    bring(RELEASE, root)
    # A package names a file as it lay before /lib became /usr/lib, or after.
    names = {here for file in files for here in (file, file.resolve())}
    names |= {Path("/usr") / name.relative_to("/") for name in names} | {
        Path("/") / name.relative_to("/usr") for name in names if name.is_relative_to("/usr")
    }
    for package in sorted({line.partition(": ")[0] for line in told("--search", *map(str, names)).splitlines()}):
        write(root / PACKAGES / package.partition(":")[0], told("--status", package))


def authorities(root: Path, packages: Path) -> None:
    """One list of authorities for all, whether they ask OpenSSL or certifi: the locked certifi's. Whoever mounts
    another over `AUTHORITIES` gives it to all of them.
    """
    bundle = packages / "certifi" / "cacert.pem"
    if not within(root, bundle).is_file():
        raise SystemExit("certifi, which brings the certificate authorities, is not among what was installed")
    for place in {root / AUTHORITIES, within(root, Path(ssl.get_default_verify_paths().openssl_cafile))}:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(bundle)


def commands(root: Path, packages: Path, interpreter: Path) -> list[Path]:
    """`python`, and what the project's wheel declares. Not pip's scripts: they name the interpreter pip ran under."""
    scripts = []
    (root / COMMANDS).mkdir(parents=True, exist_ok=True)
    for name in ("python", "python3"):
        link = root / COMMANDS / name
        if not os.path.lexists(link):
            link.symlink_to(interpreter)
    (project,) = distributions(name=PROJECT, path=[str(within(root, packages))])
    for entry in project.entry_points.select(group="console_scripts"):
        script = root / COMMANDS / entry.name
        write(
            script,
            f"#!{interpreter}\nimport sys\n\nfrom {entry.module} import {entry.attr}\n\nsys.exit({entry.attr}())\n",
        )
        scripts.append(script)
    return scripts


def compiled(root: Path, folders: Iterable[Path]) -> None:
    """Byte code for what is imported, which never looks at a file's time: copies may change that, never the files."""
    for folder in folders:
        compileall.compile_dir(
            within(root, folder),
            maxlevels=20,
            rx=SELDOM_READ,
            quiet=2,
            workers=0,
            stripdir=str(root),
            prependdir="/",
            invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
        )


def modes(root: Path, programs: set[Path]) -> None:
    """Everyone reads, nobody else writes, and only what is meant to be started can be; `/tmp` is as everywhere."""
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path in programs else 0o644)
    (root / "tmp").chmod(0o1777)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
