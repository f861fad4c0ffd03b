"""The Dockerfile's own steps, done without an engine: each stage in a folder, with a clean environment of this Python.

What differs: the base image is this machine, so the interpreter and the C library are its own, and the steps run as
whoever runs the tests. Steps name no absolute path (one that does is refused), so their folder may lie anywhere.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

from tests.integration.image.dockerfile import Stage, Step, whole

ABSOLUTE = re.compile(r"(?:^|[\s=])/\w")
SECONDS = 280


class Replay:
    """Of all stages but the last, whose tree is what its COPY takes."""

    def __init__(self, stages: list[Stage], context: Path, folder: Path) -> None:
        self.stages = stages
        self.context = context
        self.folder = folder
        self._workdir = PurePosixPath("/")
        self._environment: dict[str, str] = {}

    def run(self) -> Path:
        """All steps, up to the tree that the last stage is."""
        *building, last = self.stages
        assert last.source == "scratch"
        for stage in building:
            self._stage(stage)
        copies = last.all("COPY")
        assert len(copies) == 1, "the replay knows one tree"
        source, target = copies[0].words
        assert target == "/"
        return self._of(copies[0].flags["from"], source)

    def _stage(self, stage: Stage) -> None:
        self._workdir, self._environment = PurePosixPath("/"), {}
        root = self.folder / stage.name
        root.mkdir()
        for step in whole(self.stages, stage.name):
            match step.name:
                case "WORKDIR":
                    self._workdir /= step.rest
                    self._here(root).mkdir(parents=True, exist_ok=True)
                case "ENV":
                    self._environment |= step.pairs
                case "COPY":
                    self._copy(step, root)
                case "RUN":
                    self._run(step, root)
                case _:
                    raise ValueError(f"{step.name} in a stage that only builds")

    def _here(self, root: Path) -> Path:
        return root / self._workdir.relative_to("/")

    def _of(self, stage: str, path: str) -> Path:
        return self.folder / stage / PurePosixPath(path).relative_to("/")

    def _copy(self, step: Step, root: Path) -> None:
        *sources, target = step.words
        for source in sources:
            found = self._of(step.flags["from"], source) if "from" in step.flags else self.context / source
            into = self._here(root) / target
            if found.is_dir():
                shutil.copytree(found, into, dirs_exist_ok=True)
            else:
                place = into / found.name if target.endswith("/") else into
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, place)

    def _run(self, step: Step, root: Path) -> None:
        if ABSOLUTE.search(step.text):
            raise ValueError(f"a step names an absolute path: {step.text}")
        python = root / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", python], check=True, timeout=SECONDS)
        # Of the surroundings only what tells pip where packages come from.
        kept = {name: value for name, value in os.environ.items() if not re.match(r"PYTHON|POOLGATE|VIRTUAL_ENV", name)}
        environment = kept | self._environment | {"PATH": f"{python / 'bin'}:/usr/bin:/bin"}
        done = subprocess.run(
            ["/bin/sh", "-c", step.rest] if step.exec_form is None else step.words,
            cwd=self._here(root),
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"{step.text}\n{done.stdout}\n{done.stderr}"
