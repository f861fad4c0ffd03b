"""A person before Open WebUI, in a real browser: what they do, and what they see. Each step has its own deadline."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.webui.server import Person, Webui

SCRIPT = Path(__file__).with_name("person.mjs")
STEP_SECONDS = 30
"""What the page has for one step; the browser itself has half as much more."""


class NotSeen(AssertionError):
    """The page did not show it in time. The browser's words are in the message."""


@dataclass(frozen=True)
class Answer:
    """What stands on the page in the end, and every text that stood there before, in order."""

    text: str
    texts: list[str]


class Sitting:
    """One browser. Every method waits until the page shows what it is about; raises NotSeen."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def models(self) -> list[str]:
        """The names that may be chosen."""
        names: list[str] = self._do("models")
        return names

    def ask(self, model: str, prompt: str) -> None:
        """In a new chat."""
        self._do("ask", model=model, prompt=prompt)

    def words(self, count: int) -> str:
        """The answer, as soon as it has so many."""
        text: str = self._do("words", count=count)
        return text

    def answer(self) -> Answer:
        """The whole answer; or what is said in its place."""
        return Answer(**self._do("ended"))

    def stop(self) -> None:
        """The stop button, while an answer grows."""
        self._do("stop")

    def stopped(self) -> str:
        """What is left of the answer, once there is nothing more to stop."""
        text: str = self._do("stopped")
        return text

    def titled(self, title: str) -> None:
        """A chat of this title in the list of chats."""
        self._do("titled", title=title)

    def proposed(self, question: str) -> None:
        """What might be asked next, below the answer."""
        self._do("proposed", question=question)

    def screenshot(self, path: Path) -> None:
        self._do("screenshot", path=str(path))

    def elsewhere(self) -> list[str]:
        """What the page asked of other servers than Open WebUI."""
        addresses: list[str] = self._do("elsewhere")
        return addresses

    def _do(self, what: str, **given: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watch = threading.Timer(STEP_SECONDS * 1.5, self._process.kill)
        watch.start()
        try:
            self._process.stdin.write(json.dumps({"does": what, **given}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            raise NotSeen(f"{what}: the browser has ended")
        told = json.loads(line)
        if "error" in told:
            raise NotSeen(told["error"])
        return told["result"]


@contextmanager
def sitting(webui: Webui, person: Person) -> Iterator[Sitting]:
    """A browser in which this person is signed in; it ends with the block."""
    given = {
        "executable": shutil.which("chromium"),
        "url": webui.url,
        "token": person.token,
        "seconds": STEP_SECONDS,
    }
    process = subprocess.Popen(
        ["node", str(SCRIPT), json.dumps(given)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield Sitting(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(STEP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
