"""vLLM 0.32 on a CPU as the manifests in deploy/kustomize start it: by their arguments, in their environment, as their
user, on a root that is read-only but for their volumes. What must be another here stands in `Swaps`, nowhere else.

What a CPU cannot start is held to vLLM's help alone (tests/manifests/test_vllm.py): several GPUs in one node,
--pipeline-parallel-size over nodes (on CPUs the group forms, and fails at its first request) and
--gpu-memory-utilization.
"""

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.vllm.contained import Swaps, in_its_pod, swapped
from tests.e2e.vllm.front import gateway_before
from tests.e2e.vllm.report import Report
from tests.e2e.vllm.server import ENVIRONMENT, Vllm, end_group, free_port, installation, running
from tests.e2e.vllm.wire import END, Body, Server, events_in
from tests.manifests.building import KUSTOMIZE, build, changeable, of_kind
from tests.manifests.vllm_pods import Engine, engines

pytestmark = [pytest.mark.vllm, pytest.mark.program("kubectl"), pytest.mark.program("namespaces")]

KEY = "a-key-of-the-pods"
SECRETS = {"vllm-api-key": KEY}
CHAT = "/v1/chat/completions"

# A small model that is at hand, a free port, and one thread for each of the servers that share two cores.
CPU = Swaps({"Qwen/Qwen3-0.6B": "{model}", "--port=8000": "--port={port}"}, {"OMP_NUM_THREADS": "1"})
# A GPU's share of memory means nothing here; a CPU is not to compile, nor bind all servers to its first core.
NO_GPU = {"--gpu-memory-utilization=0.90": "--kv-cache-memory-bytes=256M"}
GPU = Swaps(
    {
        "Qwen/Qwen3-8B": "{model}",
        "--port=8000": "--port={port}",
        "--max-model-len=16384": "--max-model-len=4096",
        **NO_GPU,
    },
    {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    ("--enforce-eager",),
)
# Three nodes that share their tensors, since the model at hand has nine heads.
NODES = 3
GROUP = {
    "--tensor-parallel-size=8": f"--tensor-parallel-size={NODES}",
    "--pipeline-parallel-size=2": "--pipeline-parallel-size=1",
    "--max-model-len=32768": "--max-model-len=1024",
    **NO_GPU,
}

ADAPTER = """
import json, pathlib, sys, torch
from safetensors.torch import save_file
model, folder = map(pathlib.Path, sys.argv[1:])
config = json.loads((model / "config.json").read_text())
size, heads = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
tensors = {}
torch.manual_seed(0)
for layer in range(config["num_hidden_layers"]):
    tensors[name.format(layer, "A")] = torch.randn(8, size) / 2
    tensors[name.format(layer, "B")] = torch.randn(heads, 8) / 2
folder.mkdir(parents=True)
save_file(tensors, folder / "adapter_model.safetensors")
told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
(folder / "adapter_config.json").write_text(json.dumps(told))
"""
"""Makes a LoRA adapter that has learned nothing, and so changes every answer."""


def engine_of(component: str) -> Engine:
    (engine,) = engines(build(KUSTOMIZE / "components" / component))
    return engine


def flags_of(component: str) -> list[str]:
    """What it adds to the pool."""
    of_the_pool = engine_of("pool-vllm-gpu").arguments
    return [flag for flag in engine_of(component).arguments if flag not in of_the_pool]


def chat(model: str, prompt: str = "Name three colours.", **fields: Any) -> Body:
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 16, **fields}


def status(server: Server, path: str, key: str | None = None) -> int:
    connection = server.connect()
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {key}"} if key else {})
        return connection.getresponse().status
    finally:
        connection.close()


def text_of(server: Server, model: str, **fields: Any) -> str:
    answer = server.ask(CHAT, chat(model, **fields))
    assert answer.status == 200, answer.body
    message = json.loads(answer.body)["choices"][0]["message"]
    return str(message["content"] or message["reasoning"])


# The pool on CPUs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pod")


@pytest.fixture(scope="module")
def pod(folder: Path, report: Report) -> Iterator[Vllm]:
    with in_its_pod(engine_of("pool-vllm-cpu"), CPU, SECRETS, folder) as started:
        report.note(f"the pod of pool-vllm-cpu was ready after {started.seconds_to_start:.0f} s; its folder: {folder}")
        yield started


@pytest.fixture(scope="module")
def front(pod: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with gateway_before(pod.url, tmp_path_factory.mktemp("before-the-pod"), KEY) as gateway:
        yield gateway


def test_a_chat_streams_through_the_gateway_under_the_pools_own_name(front: Server) -> None:
    answer = front.ask(CHAT, chat("qwen3-0.6b", stream=True))
    assert answer.status == 200, answer.body
    events = events_in(answer.body)
    assert events[-1] == END
    assert b'"model":"qwen3-0.6b"' in events[0]
    assert b'"finish_reason":"length"' in answer.body


def test_the_pod_answers_nobody_without_its_key(pod: Vllm) -> None:
    server = Server(pod.url)
    assert status(server, "/v1/models") == status(server, "/v1/models", "another") == 401
    assert status(server, "/v1/models", KEY) == 200
    assert status(server, "/health") == 200  # the kubelet has no key


def test_the_pod_tells_its_load_and_takes_a_priority_and_an_id(pod: Vllm) -> None:
    """What its flags are for: /load is exact, X-Vllm-Priority is no error, X-Request-Id comes back."""
    connection = Server(pod.url).connect()
    asked = json.dumps(chat("qwen3-0.6b", stream=True, max_tokens=60))
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    connection.request("POST", CHAT, asked, {**headers, "x-vllm-priority": "5", "x-request-id": "mine"})
    answer = connection.getresponse()
    assert (answer.status, answer.headers["x-request-id"]) == (200, "mine")
    assert pod.busy().load == 1
    answer.read()
    connection.close()


def test_what_was_cached_is_told(front: Server) -> None:
    """--enable-prefix-caching with --enable-prompt-tokens-details; a block is 128 tokens on a CPU."""
    asked = chat("qwen3-0.6b", "The same beginning, word for word. " * 60)
    first, second = (json.loads(front.ask(CHAT, asked).body)["usage"] for _ in range(2))
    assert second["prompt_tokens_details"]["cached_tokens"] >= 128, (first, second)


def test_a_connection_outlives_what_vllm_would_give_it_by_itself(pod: Vllm) -> None:
    """Its own 5 s are too near to the gateway's 3 s. Here nothing, not even an end, comes for 7 s."""
    connection = Server(pod.url).connect()
    connection.request("GET", "/health")
    connection.getresponse().read()
    assert connection.sock is not None
    readable, _, _ = select.select([connection.sock], [], [], 7)
    assert not readable
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()


def test_nothing_else_had_to_be_written(front: Server, pod: Vllm, folder: Path) -> None:
    """vLLM met a read-only root and a user without a name, and found its places."""
    front.ask(CHAT, chat("qwen3-0.6b"))
    log = pod.log.read_text()
    for complaint in ("Read-only file system", "Permission denied", "No usable temporary", "getpwuid", "KeyError"):
        assert complaint not in log
    written = {path.name for path in (folder / "home").rglob("*")}
    assert written, "nothing in HOME: did it go elsewhere?"


def test_polls_are_not_in_the_log_and_requests_are(front: Server, pod: Vllm) -> None:
    front.ask(CHAT, chat("qwen3-0.6b"))
    log = pod.log.read_text()
    assert f'"POST {CHAT} HTTP/1.1" 200' in log
    assert not [path for path in ("/health", "/load", "/metrics", "/v1/models") if f'"GET {path} ' in log]


def test_a_stream_outlives_the_sigterm_of_its_pod(front: Server, pod: Vllm) -> None:
    """The last of this pod: --shutdown-timeout lets the answer end, then the process ends."""
    connection = front.connect()
    asked = json.dumps(chat("qwen3-0.6b", "Tell me a story.", stream=True, max_tokens=150, ignore_eos=True))
    connection.request("POST", CHAT, asked, front.headers())
    answer = connection.getresponse()
    seen = answer.readline()  # its first event is there: it runs
    os.kill(pod.pid, signal.SIGTERM)
    body = seen + answer.read()
    connection.close()
    assert events_in(body)[-1] == END
    assert b'"finish_reason":"length"' in body
    assert b'"error"' not in body
    assert ends(pod.pid, within_seconds=60)


def ends(pid: int, within_seconds: float) -> bool:
    """Whether a child of ours has ended by then."""
    watched = os.pidfd_open(pid)
    try:
        readable, _, _ = select.select([watched], [], [], within_seconds)
        return bool(readable)
    finally:
        os.close(watched)


# The GPU's pool, with what its components add


def test_the_gpu_pools_flags_start_with_those_of_the_components(tmp_path: Path, report: Report) -> None:
    """An adapter from the volume of models has its own name at the gateway; guesses are made."""
    components = ["lora", "speculative-decoding"]
    if " avx512f " in Path("/proc/cpuinfo").read_text():
        components.append("quantized-kv-cache")
    else:
        report.note("not run: --kv-cache-dtype=fp8, which wants a CPU with AVX-512")
    flags = [flag for component in components for flag in flags_of(component)]
    assert len(flags) >= 5, flags
    make_adapter(tmp_path / "models" / "adapters" / "support")
    swaps = Swaps(GPU.arguments, GPU.variables, (*GPU.more, *flags))
    with ExitStack() as stack:
        pod = stack.enter_context(in_its_pod(engine_of("pool-vllm-gpu"), swaps, SECRETS, tmp_path))
        report.note(f"the pod of pool-vllm-gpu with {', '.join(components)}: {pod.seconds_to_start:.0f} s to start")
        (tmp_path / "gateway").mkdir()
        front = stack.enter_context(gateway_before(pod.url, tmp_path / "gateway", KEY))
        # On a CPU each token through an adapter takes seconds: two of them tell it from the model.
        assert text_of(front, "support", max_tokens=2) != text_of(front, "qwen3-8b", max_tokens=2)
        text_of(front, "qwen3-8b", prompt="Repeat: one two three four five six seven eight. " * 2, max_tokens=40)
        metrics = pod.metrics()
    assert counter(metrics, "vllm:spec_decode_num_draft_tokens_total") > 0
    assert ('cache_dtype="fp8"' in metrics) == ("quantized-kv-cache" in components)


def make_adapter(folder: Path) -> None:
    home = installation()
    command = [str(home / "venv" / "bin" / "python"), "-c", ADAPTER, str(home / "model"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def counter(metrics: str, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith(name + "{"))


# The pool over several nodes


def test_a_group_of_nodes_answers_as_one_and_ends_as_one(tmp_path: Path, report: Report) -> None:
    """--nnodes, --node-rank, --master-addr and --headless form a group, without Ray; its leader drains; its workers
    stay until they are told to go, as LeaderWorkerSet tells them, and then go within their grace."""
    built = changeable(build(KUSTOMIZE / "components" / "pool-vllm-multi-node"))
    of_kind(built, "LeaderWorkerSet")[0]["spec"]["leaderWorkerTemplate"]["size"] = NODES
    leader, worker = engines(tuple(built))
    port, master = free_port(), free_port()
    more = ["--dtype=float32", "--enforce-eager", "--max-num-seqs=4", f"--master-port={master}"]
    environment = {**os.environ, **ENVIRONMENT, "VLLM_API_KEY": KEY, "VLLM_HOST_IP": "127.0.0.1"}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                beside([*at_hand(worker, port, rank), *more], environment, tmp_path / f"worker-{rank}.log")
            )
            for rank in range(1, NODES)
        ]
        command = [*at_hand(leader, port, 0), *more]
        group = stack.enter_context(running(command, environment, port, tmp_path / "leader.log"))
        report.note(f"a group of {NODES} nodes was ready after {group.seconds_to_start:.0f} s")
        server = Server(group.url, KEY)
        connection = server.connect()
        asked = json.dumps(chat("qwen3-235b", stream=True, max_tokens=30, ignore_eos=True))
        connection.request("POST", CHAT, asked, server.headers())
        answer = connection.getresponse()
        seen = answer.readline()
        os.kill(group.pid, signal.SIGTERM)
        assert events_in(seen + answer.read())[-1] == END
        connection.close()
        assert ends(group.pid, within_seconds=60)
        assert [each.poll() for each in workers] == [None] * len(workers)
        for each in workers:
            each.terminate()
        for each in workers:
            assert ends(each.pid, within_seconds=worker.spec["terminationGracePeriodSeconds"])


def at_hand(engine: Engine, port: int, rank: int) -> list[str]:
    """The command of one node of the group."""
    home = installation()
    swaps = {**GROUP, "Qwen/Qwen3-235B-A22B": str(home / "model")}
    (address,) = (word for word in engine.arguments if word.startswith("--master-addr="))
    swaps[address] = "--master-addr=127.0.0.1"
    swaps |= {"--node-rank=1": f"--node-rank={rank}"} if engine.headless else {"--port=8000": f"--port={port}"}
    return [str(home / "venv" / "bin" / "vllm"), "serve", *swapped(engine.arguments, swaps)]


@contextmanager
def beside(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is not asked whether it is ready."""
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            command, stdout=log_file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        end_group(process)
