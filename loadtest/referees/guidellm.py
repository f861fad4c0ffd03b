"""GuideLLM (of vLLM's project): it is given our prompts and the lengths of their answers, and makes bodies of its own.

It asks for `/health` on the port of the API before it begins; the gateway has its health on the ops port and answers
404 there, so it is told not to ask. With prompts from a file it needs no tokenizer: it takes the pods' own counts.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from loadtest.referees.figures import E2E, TPOT, TTFT, Figures, NotFound, Percentiles
from loadtest.referees.install import program
from loadtest.referees.player import Load, Target

TIMES: Final = {
    TTFT: ("time_to_first_token_ms", 1.0),
    TPOT: ("inter_token_latency_ms", 1.0),
    E2E: ("request_latency", 1e3),
}
"""Its names, and how many milliseconds their unit has."""
REPORT: Final = "guidellm.json"


class GuideLLM:
    name = "GuideLLM"

    def command(self, load: Load, target: Target, folder: Path) -> Sequence[str]:
        prompts = folder / "prompts.jsonl"
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows(load)))
        if load.rate is None:
            profile = f"kind=concurrent,streams={load.schedule.workers}"
        else:
            profile = f"kind=constant,rate={load.rate:g}"
        backend = f"kind=openai_http,target={target.url},model={target.model},api_key={target.key}"
        return [
            str(program("guidellm")), "run", "--backend", f"{backend},http2=false,validate_backend=false",
            "--data", f"kind=json_file,path={prompts}", "--profile", profile,
            "--constraint", f"kind=max_requests,count={len(load.schedule.requests)}",
            "--output", f"kind=json,path={folder / REPORT}", "--disable-console-interactive",
        ]  # fmt: skip

    def variables(self) -> Mapping[str, str]:
        return {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def read(self, folder: Path) -> Figures:
        try:
            return figures(json.loads((folder / REPORT).read_text()))
        except FileNotFoundError:
            raise NotFound(f"GuideLLM wrote no {REPORT}") from None


def rows(load: Load) -> Sequence[Mapping[str, Any]]:
    """Its data: what each request says, and how long the answer is."""
    spoken = [(json.loads(planned.body)["messages"], planned.max_tokens) for planned in load.schedule.requests]
    return [
        {"prompt": message["content"], "output_tokens_count": tokens}
        for messages, tokens in spoken
        for message in messages
    ]


def figures(told: Mapping[str, Any]) -> Figures:
    """Of its JSON, with one benchmark in it. Raises NotFound."""
    try:
        [run] = told["benchmarks"]
        made, metrics = run["scheduler_metrics"]["requests_made"], run["metrics"]
        return Figures(
            whole=made["successful"],
            failed=made["total"] - made["successful"],
            prompt_tokens=round(_whole(metrics, "prompt_token_count")["total_sum"]),
            output_tokens=round(_whole(metrics, "output_token_count")["total_sum"]),
            requests_per_second=_whole(metrics, "requests_per_second")["mean"],
            tokens_per_second=_whole(metrics, "output_tokens_per_second")["mean"],
            times={name: _percentiles(_whole(metrics, tag), unit) for name, (tag, unit) in TIMES.items()},
        )
    except (KeyError, ValueError) as error:
        raise NotFound(f"GuideLLM's report is not as it was known: {error!r}") from None


def _whole(metrics: Mapping[str, Any], tag: str) -> Mapping[str, Any]:
    """Of requests that came whole."""
    found: Mapping[str, Any] = metrics[tag]["successful"]
    return found


def _percentiles(told: Mapping[str, Any], unit: float) -> Percentiles:
    found = told["percentiles"]
    return Percentiles(found["p50"] * unit, found["p90"] * unit, found["p99"] * unit)
