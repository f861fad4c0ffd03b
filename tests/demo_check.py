"""`make demo-check`: the demo as a stranger gets it, and one streamed chat through the OpenAI SDK.

Prints how long it took from the start to the first token, and the text. Exit 0, or 1 with one line that says what
went wrong.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import openai
from openai import OpenAI

ROOT = Path(__file__).resolve().parents[1]
MODEL = "qwen3-8b"
START_SECONDS = 60.0
READY_SECONDS = 60.0
END_SECONDS = 60.0
WORDS = re.compile(r"base URL +(\S+)\n +API key +(\S+)\n(?:.*\n)*? +metrics +(\S+)/metrics\n")


class Failed(Exception):
    """What went wrong, in a line."""


def main() -> int:
    """Run the check; the exit code."""
    began = time.monotonic()
    try:
        with demo() as process:
            base_url, key, ops_url = said(process)
            wait_until_ready(ops_url)
            text, first_token_at = chat(base_url, key)
            end(process)
    except Failed as failure:
        print(f"demo-check: {failure}", file=sys.stderr)
        return 1
    print(f"demo-check: {first_token_at - began:.2f} s from start to first token")
    print(text)
    return 0


@contextmanager
def demo() -> Iterator[subprocess.Popen[str]]:
    """The running demo, ended with all it has started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "demo", "--port", "0", "--ops-port", "0"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # A demo that says nothing would be waited for without end.
    watch = threading.Timer(START_SECONDS, process.send_signal, (signal.SIGINT,))
    watch.start()
    try:
        with process:
            yield process
            watch.cancel()
    finally:
        watch.cancel()
        if process.poll() is None:
            process.kill()


def said(process: subprocess.Popen[str]) -> tuple[str, str, str]:
    """(base URL, key, URL of the ops port), from the demo's words."""
    assert process.stderr is not None
    text = ""
    for line in process.stderr:
        text += line
        if (match := WORDS.search(text)) is not None:
            return match[1], match[2], match[3]
    words = text.strip().splitlines() or ["without a word"]
    raise Failed(f"the demo ended before it was up: {words[-1]}")


def wait_until_ready(ops_url: str) -> None:
    """The words come before the pods have told their models; a person who pastes a curl is slower than that."""
    give_up_at = time.monotonic() + READY_SECONDS
    while time.monotonic() < give_up_at:
        try:
            with urlopen(f"{ops_url}/readyz", timeout=READY_SECONDS):
                return
        except HTTPError:
            time.sleep(0.02)
        except OSError as error:
            raise Failed(f"the ops port does not answer: {error}") from None
    raise Failed(f"the demo was not ready within {READY_SECONDS:g} s")


def chat(base_url: str, key: str) -> tuple[str, float]:
    """(the text of one streamed chat, when its first token came)."""
    first_token_at = None
    text = ""
    try:
        with OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=60) as client:
            stream = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hello!"}], stream=True, max_tokens=32
            )
            for event in stream:
                piece = event.choices[0].delta.content if event.choices else None
                if piece:
                    first_token_at = first_token_at or time.monotonic()
                    text += piece
    except openai.OpenAIError as error:
        raise Failed(f"the chat failed: {error}") from None
    if first_token_at is None:
        raise Failed("the stream ended without a token")
    return text, first_token_at


def end(process: subprocess.Popen[str]) -> None:
    """Ctrl-C, as a person would: a clean exit, and no simulator left."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    started = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    try:
        _, words = process.communicate(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        raise Failed(f"the demo did not end within {END_SECONDS:g} s of Ctrl-C") from None
    if process.returncode != 0 or "Traceback" in words:
        raise Failed(f"the demo ended with code {process.returncode}: {words.strip().splitlines()[-1:]}")
    left = [pid for pid in started if os.path.exists(f"/proc/{pid}")]
    if left:
        raise Failed(f"the demo left processes behind: {left}")


if __name__ == "__main__":
    raise SystemExit(main())
