"""A Dockerfile as its steps: as much of the language as ours speaks, and a refusal for the rest."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = ROOT / "Dockerfile"
KNOWN = {
    *("FROM", "WORKDIR", "COPY", "RUN", "ENV", "LABEL", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT"),
    "CMD",
}


@dataclass(frozen=True)
class Step:
    """One instruction, its lines joined."""

    name: str
    text: str

    @property
    def flags(self) -> dict[str, str]:
        """What stands before the rest as --NAME=VALUE."""
        return dict(re.findall(r"--([a-z-]+)=(\S+)", re.match(r"(?:--\S+\s+)*", self.text)[0]))  # type: ignore[index]  # it matches nothing too

    @property
    def rest(self) -> str:
        return re.sub(r"^(?:--\S+\s+)*", "", self.text)

    @property
    def words(self) -> list[str]:
        """The exec form's, or what stands between spaces."""
        form = self.exec_form
        return shlex.split(self.rest) if form is None else form

    @property
    def exec_form(self) -> list[str] | None:
        """The words of a JSON list; None where a shell would read it."""
        if not self.rest.startswith("["):
            return None
        found: list[str] = json.loads(self.rest)
        return found

    @property
    def pairs(self) -> dict[str, str]:
        """Of ENV and LABEL."""
        return dict(word.split("=", 1) for word in shlex.split(self.rest))


@dataclass
class Stage:
    """What begins with a FROM."""

    name: str
    source: str
    """An image, or a stage before it."""
    steps: list[Step] = field(default_factory=list)

    def all(self, name: str) -> list[Step]:
        return [step for step in self.steps if step.name == name]

    def last(self, name: str) -> Step:
        """Of several, only the last one counts."""
        return self.all(name)[-1]

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for step in self.all("ENV") for name, value in step.pairs.items()}


def parse(text: str) -> list[Stage]:
    """The stages, in order. Raises `ValueError` for an instruction that nobody here knows how to replay."""
    stages: list[Stage] = []
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\s*\\\n\s*", " ", lines).splitlines():
        if not line.strip():
            continue
        name, rest = line.split(maxsplit=1)
        if name not in KNOWN:
            raise ValueError(f"the replay does not know {name}")
        if name == "FROM":
            source, _, stage = rest.partition(" AS ")
            stages.append(Stage(stage.strip(), source.strip()))
        else:
            stages[-1].steps.append(Step(name, rest.strip()))
    return stages


def whole(stages: list[Stage], name: str) -> list[Step]:
    """The steps of a stage and of those that it is built upon."""
    found = next((stage for stage in stages if stage.name == name), None)
    return [] if found is None else [*whole(stages, found.source), *found.steps]
