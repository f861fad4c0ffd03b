"""AIPerf (NVIDIA): it is given our requests' bodies, and sends them as they are.

It wants a tokenizer, though it takes the pods' own counts: its `builtin` one is downloaded, so it gets one word that is
written here. No variable tells it to stay offline: with HF_HUB_OFFLINE it takes no path for a tokenizer.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from loadtest.referees.figures import E2E, GAP, TPOT, TTFT, Figures, NotFound, Percentiles
from loadtest.referees.install import program
from loadtest.referees.player import Load, Target

TIMES: Final = {
    TTFT: "time_to_first_token",
    TPOT: "inter_token_latency",
    GAP: "inter_chunk_latency",
    E2E: "request_latency",
}
REPORT: Final = "profile_export_aiperf.json"
_END: Final = "<|end|>"
TOKENIZER: Final[Mapping[str, Any]] = {
    "version": "1.0",
    "added_tokens": [
        {
            "id": 0,
            "content": _END,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {_END: 0}, "unk_token": _END},
}


class AIPerf:
    name = "AIPerf"

    def command(self, load: Load, target: Target, folder: Path) -> Sequence[str]:
        bodies, tokenizer = folder / "bodies.jsonl", folder / "tokenizer"
        bodies.write_bytes(b"".join(planned.body + b"\n" for planned in load.schedule.requests))
        tokenizer.mkdir()
        (tokenizer / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        (tokenizer / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _END, "bos_token": _END})
        )
        if load.rate is None:
            pace = ["--concurrency", str(load.schedule.workers)]
        else:
            pace = ["--request-rate", f"{load.rate:g}", "--arrival-pattern", "constant"]
        return [
            str(program("aiperf")), "profile", "--url", target.url, "--api-key", target.key, "--model", target.model,
            "--endpoint-type", "chat", "--streaming", "--use-server-token-count", "--tokenizer", str(tokenizer),
            "--input-file", str(bodies), "--custom-dataset-type", "raw-payload",
            "--dataset-sampling-strategy", "sequential", "--request-count", str(len(load.schedule.requests)), *pace,
            # Two, as many as there are cores where we run it: more would only wait for each other.
            "--workers-max", "2", "--record-processors", "1",
            "--no-server-metrics", "--no-gpu-telemetry", "--ui", "none", "--artifact-dir", str(folder),
        ]  # fmt: skip

    def variables(self) -> Mapping[str, str]:
        return {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}

    def read(self, folder: Path) -> Figures:
        try:
            return figures(json.loads((folder / REPORT).read_text()))
        except FileNotFoundError:
            raise NotFound(f"AIPerf wrote no {REPORT}") from None


def figures(told: Mapping[str, Any]) -> Figures:
    """Of its JSON. Raises NotFound."""
    try:
        if not told["is_complete"]:
            raise NotFound("AIPerf was stopped before its end")
        whole, every = round(told["request_count"]["avg"]), round(told["completed_request_count"]["avg"])
        return Figures(
            whole=whole,
            failed=every - whole,
            prompt_tokens=round(told["total_isl"]["avg"]),
            output_tokens=round(told["total_osl"]["avg"]),
            requests_per_second=told["request_throughput"]["avg"],
            tokens_per_second=told["output_token_throughput"]["avg"],
            times={name: _percentiles(told[tag]) for name, tag in TIMES.items()},
        )
    except KeyError as error:
        raise NotFound(f"AIPerf's report has no {error}") from None


def _percentiles(told: Mapping[str, Any]) -> Percentiles:
    if told["unit"] != "ms":
        raise NotFound(f"AIPerf's report tells a time in {told['unit']}")
    return Percentiles(told["p50"], told["p90"], told["p99"])
