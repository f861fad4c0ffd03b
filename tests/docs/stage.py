"""Where the pages' commands are run: a copy of the tree as it is cloned, and a demo that runs beside it.

A page's text is changed in as few places as can be, and all of them are here: addresses, ports and keys become those of
the running demo (a page names the default ports, which may be taken), and a command without an end is ended.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.request import Request, urlopen

from tests.demo_check import END_SECONDS, WORDS, wait_until_ready
from tests.docs.pages import ROOT, Block, blocks

SECONDS = 90.0
"""For one block: generous, and never slept through."""
KEYS = """\
keys:
  - {id: a1b2c3d4, sha256: 6ca13d52ca70c883e0f0bb101e425a89e8624de51db2d2392593af6a84118090, team: acme}
"""
CONFIG = """\
discovery: {pods: [{url: "http://127.0.0.1:9", pool: chat}]}
auth: {keys_file: keys.yaml}
"""
LASTING = re.compile(
    r"^(?=(?:\S*/)?poolgate (?:serve|demo)\b|make demo(?:\s|$)|(?:\S*/)?python -m loadtest\.simulator\b)", re.MULTILINE
)
"""Where a command begins that runs until Ctrl-C."""


@dataclass(frozen=True)
class Stage:
    """The copy, and what the demo has said."""

    tree: Path
    url: str
    """The demo's public port, without `/v1`."""
    key: str
    ops_url: str
    request_id: str
    """A request that it has answered."""
    words: str
    """All that it has printed."""
    folders: dict[str, Path] = field(default_factory=dict)

    def folder(self, page: str) -> Path:
        """Where a page's commands are typed: the root of a clone, with the files that the page goes by."""
        if page not in self.folders:
            self.folders[page] = folder = self.tree.parent / re.sub(r"\W", "-", page)
            folder.mkdir()
            for name in os.listdir(self.tree):
                (folder / name).symlink_to(self.tree / name)
            (folder / "keys.yaml").write_text(KEYS + _entry(self.key), "utf-8")
            (folder / "poolgate.yaml").write_text(CONFIG, "utf-8")
            for block in blocks(page):
                if block.file is not None and block.language in ("yaml", "json"):
                    shown = folder / block.file
                    assert not shown.exists() or shown.parent == folder, f"{block.name}: {block.file} is in the tree"
                    shown.parent.mkdir(parents=True, exist_ok=True)
                    shown.write_text(self.as_here(block.text), "utf-8")
        return self.folders[page]

    def run(self, block: Block) -> subprocess.CompletedProcess[str]:
        """Type a block, and wait for its end."""
        return self.typed(block.script, self.folder(block.page))

    def typed(self, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run lines by a shell that ends with the first one that fails."""
        lasting = 'until_up() { python -m tests.docs.lasting "$@"; }\n'
        return subprocess.run(
            ["sh", "-e", "-c", lasting + LASTING.sub("until_up ", self.as_here(script))],
            cwd=folder,
            env=self.environment(folder),
            input=f"{self.key}\n",  # for what asks for one
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def environment(self, folder: Path) -> dict[str, str]:
        """Ours, with the programs of the clone first, and nobody's settings."""
        path = (f"{self.tree}/.venv/bin", f"{ROOT}/.validators/bin", os.environ["PATH"])
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("POOLGATE_", "KUBE"))}
        return kept | {"PATH": ":".join(path), "HOME": str(folder), "POOLGATE_API_KEY": self.key}

    def as_here(self, text: str) -> str:
        """The page's text with what is so on this machine."""
        text = re.sub(r"http://127\.0\.0\.1:8[01]00", self.url, text)
        text = re.sub(r"http://(?:127\.0\.0\.1|10\.0\.0\.7):9090", self.ops_url, text)
        text = re.sub(r"http://10\.0\.0\.(\d+):8000", r"http://127.0.0.1:\1", text)  # nobody is there, at once
        text = re.sub(r"sk-pg_(?:…|\.\.\.)", self.key, text)
        text = text.replace("5274ea7ba96fc19300000006", self.request_id)
        text = re.sub(r"--((?:ops-)?port) (?:8100|9190)", r"--\1 0", text)
        # Defaults, where the page leaves them.
        text = re.sub(r"(poolgate (?:top|pods|explain))\b(?!.* --url)", rf"\1 --url {self.ops_url}", text)
        text = re.sub(r"(poolgate chat)\b(?!.* --url)", rf"\1 --url {self.url}", text)
        text = re.sub(r"(poolgate (?:serve|demo))\b(?!.* --port)", r"\1 --port 0 --ops-port 0", text)
        text = re.sub(r"(python -m loadtest\.simulator)\b(?!.* --port-base)", r"\1 --port-base 0", text)
        return re.sub(r"^make demo$", 'make demo ARGS="--port 0 --ops-port 0"', text, flags=re.MULTILINE)


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """The stage, for as long as the demo runs."""
    tree = folder / "clone"
    export(tree)
    with _demo() as words:
        told = WORDS.search(words)
        assert told is not None, words
        url, key, ops_url = told[1].removesuffix("/v1"), told[2], told[3]
        wait_until_ready(ops_url)
        yield Stage(tree, url, key, ops_url, _asked(url, key), words)


def _entry(key: str) -> str:
    """The demo's key, as a line of a keys file."""
    return f"  - {{id: {key.split('_')[1]}, sha256: {sha256(key.encode()).hexdigest()}, team: demo}}\n"


@contextmanager
def _demo() -> Iterator[str]:
    """The running demo: what it has printed, to its last line."""
    command = [sys.executable, "-m", "gateway", "demo", "--port", "0", "--ops-port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            words = ""
            for line in process.stderr:
                words += line
                if '"messages"' in line:
                    break
            yield words
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=END_SECONDS)
        finally:
            process.kill()


def export(tree: Path) -> None:
    """Copy what a clone has (and what is about to be committed), and link the environment in.

    The environment's folder is one of its own: what `make` notes there, and whether it is new enough, is the copy's.
    """
    for name in names():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    venv = tree / ".venv"
    venv.mkdir()
    for each in Path(sys.prefix).iterdir():
        if each.name not in (".runtime", ".dev"):
            (venv / each.name).symlink_to(each)
    for stamp in (".runtime", ".dev"):
        (venv / stamp).touch()


def names() -> list[str]:
    """The files that git knows or would take, else all but what was made."""
    if shutil.which("git") is not None:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if listed.returncode == 0:
            return [name for name in listed.stdout.split("\0") if name]
    made = {".venv", ".validators", "node_modules", ".vllm", ".webui", "__pycache__"}
    made |= {".mypy_cache", ".ruff_cache", ".hypothesis", ".import_linter_cache"}
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [str(path) for path in files if not made & set(path.parts)]


def _asked(url: str, key: str) -> str:
    """The id of a request that was answered just now."""
    body = b'{"model": "qwen3-8b", "max_tokens": 1, "messages": [{"role": "user", "content": "Hello!"}]}'
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urlopen(Request(f"{url}/v1/chat/completions", body, headers), timeout=SECONDS) as answer:
        return str(answer.headers["x-request-id"])
