"""Measure at a real vLLM what the pod model takes for granted: `python -m loadtest.policysim.calibrate --url URL`.

The model (`profiles`) says: a step takes a + b × sequences that decode + c × prompt tokens computed + d × the pairs of
those with a token before them (attention), and a token found in the cache costs only its pairs. Two runs on an idle pod
fit it: the time between tokens, by streams at once, gives a and b; the time to first token, by length of the prompt,
then gives c and d. Two more are predicted by the fit and measured: a prompt that was asked before, and the gap that a
long prompt tears into the streams beside it. Prompts are token ids, drawn anew each time: exact lengths, nothing cached
by accident.

vLLM has to be started with its prefix cache, and with a step's budget above the longest prompt asked here.
"""

import argparse
import http.client
import json
import random
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from urllib.parse import urlsplit

from loadtest.policysim.profiles import StepTime, pairs

LENGTHS = (64, 128, 256, 512, 1024, 1800)
STREAMS = (1, 2, 4, 8)
TOKEN_IDS = range(1000, 30000)
DECODING_SECONDS = 120.0
FIRST_TOKENS = 20
"""Of a stream among several: the gaps between them are torn by the others' prompts."""


def fit(rows: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """The p, q of y = p × u + q × v for rows (u, v, y), with the least squared errors relative to y: a tenth too much
    is as wrong at 64 tokens as at 1,800."""
    uu = sum(u * u / y**2 for u, _, y in rows)
    vv = sum(v * v / y**2 for _, v, y in rows)
    uv = sum(u * v / y**2 for u, v, y in rows)
    u1 = sum(u / y for u, _, y in rows)
    v1 = sum(v / y for _, v, y in rows)
    determinant = uu * vv - uv * uv
    return (u1 * vv - v1 * uv) / determinant, (v1 * uu - u1 * uv) / determinant


def fitted(by_streams: Mapping[int, float], by_length: Mapping[int, float]) -> StepTime:
    """Streams at once → seconds between tokens; prompt tokens → seconds to first token; both on a pod else idle."""
    step, sequence = fit([(1, streams, seconds) for streams, seconds in by_streams.items()])
    token, pair = fit([(length, pairs(0, length), seconds - step) for length, seconds in by_length.items()])
    return StepTime(step=step, per_sequence=sequence, per_token=token, per_pair=pair)


class Pod:
    """One vLLM, asked through the completions API."""

    def __init__(self, url: str, model: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._model = model

    def token_times(
        self, prompt: Sequence[int], answer_tokens: int, decoding: threading.Event | None = None
    ) -> list[float]:
        """When the request was sent, then when each token came; `decoding` is set when the first ones are behind."""
        asked = {"model": self._model, "prompt": prompt, "max_tokens": answer_tokens, "stream": True, "temperature": 0}
        body = json.dumps({**asked, "ignore_eos": True})
        connection = http.client.HTTPConnection(self._host, self._port, timeout=120)
        try:
            times = [time.perf_counter()]
            connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise SystemExit(f"the pod answered {answer.status}: {answer.read().decode()}")
            while line := answer.readline():
                if line.startswith(b"data: {"):
                    times.append(time.perf_counter())
                    if decoding is not None and len(times) > FIRST_TOKENS + 2:
                        decoding.set()
            return times
        finally:
            connection.close()

    def first_token_seconds(self, prompt: Sequence[int]) -> float:
        sent, first, *_ = self.token_times(prompt, 1)
        return first - sent


def by_length(pod: Pod, rng: random.Random, repeats: int) -> dict[int, float]:
    """Prompt tokens → seconds to first token on an idle pod, nothing cached; medians."""
    return {
        length: statistics.median(pod.first_token_seconds(new_prompt(rng, length)) for _ in range(repeats))
        for length in LENGTHS
    }


def when_cached(pod: Pod, rng: random.Random, repeats: int) -> dict[int, float]:
    """The same, for prompts asked a moment before."""
    seconds: dict[int, float] = {}
    for length in LENGTHS[2:]:
        prompts = [new_prompt(rng, length) for _ in range(repeats)]
        for prompt in prompts:
            pod.first_token_seconds(prompt)
        seconds[length] = statistics.median(pod.first_token_seconds(prompt) for prompt in prompts)
    return seconds


def by_streams(pod: Pod, rng: random.Random, tokens: int) -> dict[int, float]:
    """Streams at once → median seconds between tokens, while all of them decode."""
    return {streams: statistics.median(_gaps(pod, rng, streams, tokens)) for streams in STREAMS}


def torn(pod: Pod, rng: random.Random, streams: int, length: int) -> float:
    """The longest gap in the median stream of several, when a prompt of that length arrives beside them."""
    with _streaming(pod, rng, streams, 150) as told:
        pod.first_token_seconds(new_prompt(rng, length))
    return statistics.median(max(_between(times)[FIRST_TOKENS:]) for times in told)


@contextmanager
def _streaming(pod: Pod, rng: random.Random, streams: int, tokens: int) -> Iterator[list[list[float]]]:
    """So many streams at once: the block begins when all of them decode, and what it got is filled when all ended."""
    told: list[list[float]] = []

    def stream(prompt: Sequence[int], decoding: threading.Event) -> None:
        told.append(pod.token_times(prompt, tokens, decoding))

    begun = [threading.Event() for _ in range(streams)]
    threads = [threading.Thread(target=stream, args=(new_prompt(rng, 64), decoding)) for decoding in begun]
    for thread in threads:
        thread.start()
    for decoding in begun:
        if not decoding.wait(DECODING_SECONDS):
            raise SystemExit("a stream has not begun to decode in time")
    yield told
    for thread in threads:
        thread.join()


def _gaps(pod: Pod, rng: random.Random, streams: int, tokens: int) -> list[float]:
    with _streaming(pod, rng, streams, tokens) as told:
        pass
    begin, end = max(times[1] for times in told), min(times[-1] for times in told)
    return [
        later - earlier for times in told for earlier, later in pairwise(times[1:]) if begin <= earlier and later <= end
    ]


def _between(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times[1:])]


def new_prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.choice(TOKEN_IDS) for _ in range(length)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.policysim.calibrate", description=__doc__.split("\n")[0])
    parser.add_argument("--url", required=True, help="of an idle vLLM, such as http://127.0.0.1:8000")
    parser.add_argument("--model", required=True, help="the name it serves")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="prompts of each length (5)")
    parser.add_argument("--block-size", type=int, default=32, metavar="N", help="as the pod was started with (32)")
    parser.add_argument("--seed", type=int, default=time.time_ns(), help="of the prompts; default: new ones")
    asked = parser.parse_args(arguments)
    pod, rng = Pod(asked.url, asked.model), random.Random(asked.seed)
    for _ in range(3):
        pod.token_times(new_prompt(rng, 64), 8)  # what a first request warms up is not the model's business

    lengths = by_length(pod, rng, asked.repeats)
    streams = by_streams(pod, rng, tokens=48)
    cached = when_cached(pod, rng, asked.repeats)
    time_of = fitted(streams, lengths)
    print(time_of, "\n")
    print("| measured | ms | the fit says |\n|---|---|---|")
    for length, seconds in lengths.items():
        _row(f"first token, {length:,} prompt tokens", seconds, time_of.seconds(0, length, pairs(0, length)))
    for count, seconds in streams.items():
        _row(f"between tokens, {count} at once", seconds, time_of.seconds(count, 0, 0))
    for length, seconds in cached.items():
        rest = (length - 1) % asked.block_size + 1
        says = time_of.seconds(0, rest, pairs(length - rest, rest))
        _row(f"first token, {length:,} tokens asked before, {rest} of them computed", seconds, says)
    for beside in (1, 4):
        seconds = statistics.median(torn(pod, rng, beside, 1024) for _ in range(3))
        _row(f"gap in {beside} streams as 1,024 tokens come", seconds, time_of.seconds(beside, 1024, pairs(0, 1024)))
    return 0


def _row(what: str, seconds: float, says: float) -> None:
    print(f"| {what} | {seconds * 1e3:.1f} | {says * 1e3:.1f} |", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
