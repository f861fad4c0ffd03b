"""What the gateway says of itself: one line each, nothing of a caller's, and no wait for whoever reads it."""

import asyncio
import io
import logging
import os
import queue
import sys
import threading
import time
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Self, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.words import one_line
from gateway.telemetry import log as module
from gateway.telemetry.log import MAX_LINE_CHARACTERS, Log, logging_to, origin, uncaught, write_whole

SECRET = "a prompt that nobody may read"
log = logging.getLogger("poolgate.tests")


@contextmanager
def logged(out: BinaryIO | None = None) -> Iterator[list[str]]:
    """The lines that were written, once the block is over."""
    file, lines = out or io.BytesIO(), list[str]()
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.INFO)
    try:
        with logging_to(file):
            yield lines
    finally:
        logging.getLogger().setLevel(level)
    if isinstance(file, io.BytesIO):
        lines += file.getvalue().decode().split("\n")[:-1]


def raised(error: Exception) -> Exception:
    """That error, with places that it came through."""
    try:
        raise error
    except type(error) as caught:
        return caught


def test_a_record_is_one_line() -> None:
    with logged() as lines:
        log.warning("pod %s is refused: %s", "chat-0", "no port")
    assert lines == ["WARNING poolgate.tests: pod chat-0 is refused: no port"]


@pytest.mark.parametrize(
    "sign", ["\n", "\r\n", "\x1b[31m", "\u2028", "\u2029", "\x85", "\x00", "\x9b", "\u202e", "\ud800"]
)
def test_what_would_end_a_line_or_colour_a_terminal_is_escaped(sign: str) -> None:
    with logged() as lines:
        log.error("a model %s is not served", f"m{sign}ERROR poolgate: forged")
    (line,) = lines
    assert line.isprintable()
    assert line.startswith("ERROR poolgate.tests: a model m\\")


def test_a_line_has_an_end() -> None:
    with logged() as lines:
        log.error("%s", "x" * 1_000_000)
    assert MAX_LINE_CHARACTERS <= len(lines[0]) < MAX_LINE_CHARACTERS + 100


@given(st.text(), st.integers(0, 50))
def test_a_part_of_a_line_never_ends_it_and_is_bounded(text: str, most: int) -> None:
    part = one_line(text, most)
    assert part.isprintable()
    assert len(part.splitlines()) <= 1
    assert len(part) <= 12 * (most + 1)
    assert not any(unicodedata.category(each).startswith("C") for each in part)


def leaking() -> list[Exception]:
    """Errors whose texts quote what was worked on."""
    quoted = SECRET.encode() + b"\xff"
    with pytest.raises(UnicodeDecodeError) as bytes_quoted:
        quoted.decode()
    with pytest.raises(msgspec.ValidationError) as value_quoted:
        msgspec.convert({"a": SECRET}, dict[str, int])
    with pytest.raises(ValueError, match="invalid literal") as text_quoted:
        int(SECRET)
    return [
        raised(KeyError(SECRET)),
        bytes_quoted.value,
        value_quoted.value,
        text_quoted.value,
        raised(OSError(111, f"connect to {SECRET} failed")),
        raised(OSError(SECRET)),
        raised(ExceptionGroup(SECRET, [ValueError(SECRET)])),
    ]


@pytest.mark.parametrize("error", leaking(), ids=lambda error: type(error).__name__)
def test_of_an_exception_types_and_places_are_told_and_never_its_text(error: Exception) -> None:
    with logged() as lines:
        try:
            raise RuntimeError(SECRET) from error
        except RuntimeError:
            log.exception("a request failed inside the gateway")
    (line,) = lines
    assert line.startswith(
        "ERROR poolgate.tests: a request failed inside the gateway: Traceback: RuntimeError at test_log.py"
    )
    assert type(error).__name__ in line
    assert "prompt" not in line


def test_the_systems_own_words_for_an_error_are_told() -> None:
    assert "ConnectionRefusedError (Connection refused)" in origin(raised(OSError(111, "to 10.0.0.1")))


def test_a_chain_of_causes_has_an_end() -> None:
    error: Exception = ValueError()
    for _ in range(100):
        after = ValueError()
        after.__cause__, error = error, after
    assert origin(error).count("ValueError") == 4


def test_the_deepest_places_are_told() -> None:
    def deeper(steps: int) -> None:
        if not steps:
            raise KeyError(SECRET)
        deeper(steps - 1)

    with pytest.raises(KeyError) as caught:
        deeper(100)
    assert origin(caught.value).count("test_log.py") == 12


async def test_an_error_in_a_callback_tells_nothing_of_its_arguments() -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(uncaught)

    def fails(_: str) -> None:
        raise KeyError(SECRET)

    with logged() as lines:
        loop.call_soon(fails, SECRET)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task = asyncio.create_task(_fails_with(SECRET))
        await asyncio.wait([task])
        del task
    loop.set_exception_handler(None)
    assert len(lines) == 2
    assert all("KeyError at" in line and line.startswith("ERROR poolgate: ") for line in lines)
    assert not any("prompt" in line for line in lines)


async def _fails_with(text: str) -> None:
    raise KeyError(text)


def test_warnings_and_errors_that_nobody_caught_are_lines_as_well(capfd: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise KeyError(SECRET)

    class Unfinished:
        def __del__(self) -> None:
            raise KeyError(SECRET)

    with logged() as lines:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("two\nlines", stacklevel=1)
        thread = threading.Thread(target=fails)
        thread.start()
        thread.join()
        Unfinished()
    assert [line.partition(":")[0] for line in lines] == ["WARNING py.warnings", "ERROR poolgate", "ERROR poolgate"]
    assert not any("prompt" in line for line in lines)
    assert capfd.readouterr().err == ""


def test_words_that_do_not_fit_their_values_are_a_line_all_the_same() -> None:
    with logged() as lines:
        log.error("%d pods", "many")
    assert lines == ["ERROR poolgate.tests: %d pods"]


def test_afterwards_logging_is_as_it_was() -> None:
    before = (list(logging.getLogger().handlers), sys.unraisablehook, threading.excepthook, warnings.showwarning)
    with logged():
        pass
    assert (
        list(logging.getLogger().handlers),
        sys.unraisablehook,
        threading.excepthook,
        warnings.showwarning,
    ) == before


# --- whoever reads ------------------------------------------------------------------------------------------


class Stopped:
    """A pipe whose reader has stopped, and may go on."""

    def __init__(self) -> None:
        self.read_end, write_end = os.pipe()
        self.out = io.FileIO(write_end, "wb")

    def read_on(self) -> bytes:
        """All that is in it, until its writer closes it."""
        parts = []
        while part := os.read(self.read_end, 65536):
            parts.append(part)
        return b"".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.out.close()
        os.close(self.read_end)


def test_a_log_that_nobody_reads_holds_up_nobody_and_counts_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    # Here somebody reads on in the end, and may need longer than our second to begin.
    monkeypatch.setattr(module, "CLOSE_SECONDS", 60.0)
    with Stopped() as pipe:
        ours = Log(cast("BinaryIO", pipe.out), max_waiting_lines=100)
        record = logging.LogRecord("poolgate", logging.INFO, "", 0, "x" * 2000, None, None)
        for _ in range(10_000):
            ours.emit(record)
        # A pipe takes 64 KiB, thus 32 of these lines; one is being written, 100 wait.
        assert 9_800 < ours.dropped <= 9_900
        lost = ours.dropped
        read: queue.Queue[bytes] = queue.Queue()
        reader = threading.Thread(target=lambda: read.put(pipe.read_on()))
        reader.start()
        ours.close()
        pipe.out.close()
        reader.join()
        text = read.get()
    assert b"whoever reads stderr is too slow: %d lines were lost so far" % lost in text
    assert text.count(b"x" * 2000) == 10_000 - lost


def test_an_end_with_nobody_reading_waits_two_seconds_at_most() -> None:
    with Stopped() as pipe:
        ours = Log(cast("BinaryIO", pipe.out), max_waiting_lines=10)
        for _ in range(100):
            ours.say("x" * 10_000)
        began = time.monotonic()
        ours.close()
        assert time.monotonic() - began < 10
        os.read(pipe.read_end, 65536)
        ended = threading.Thread(target=pipe.read_on)
        ended.daemon = True
        ended.start()
        ours._lines.put(None)
        ours._writer.join()
        pipe.out.close()
        ended.join()


def test_a_log_that_cannot_be_written_is_counted() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "wb", buffering=0) as out:
        ours = Log(cast("BinaryIO", out))
        ours.say("nobody hears it")
        ours.close()
    assert ours.dropped == 1


class Halting(io.RawIOBase):
    """Takes seven bytes at a time, as a write does that a signal ends."""

    def __init__(self) -> None:
        self.taken = b""

    def write(self, content: Any) -> int:
        self.taken += bytes(content[:7])
        return len(content[:7])


class Full(io.RawIOBase):
    """Would have to wait, and does not."""

    def write(self, content: Any) -> None:
        return None


def test_a_write_that_takes_a_part_goes_on_with_the_rest() -> None:
    out = Halting()
    write_whole(cast("BinaryIO", out), b"a line that is longer than that\n")
    assert out.taken == b"a line that is longer than that\n"


def test_a_file_that_does_not_wait_is_no_endless_loop() -> None:
    with pytest.raises(BlockingIOError):
        write_whole(cast("BinaryIO", Full()), b"a line\n")
