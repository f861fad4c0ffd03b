"""Files of the configuration."""

from pathlib import Path

GOOD = """\
server: {port: 8100}
discovery:
  mode: static
  pods:
    - {url: "http://127.0.0.1:8101", pool: chat}
    - {url: "http://[::1]:8102", pool: chat, name: second}
    - {url: "http://pod.local:8103", pool: embed}
pools:
  chat: {models: ["qwen*"], ttft_seconds: 30}
  embed: {policy: p2c, max_in_flight_per_pod: 8, queue_limit: 0, queue_wait_seconds: 0, hold_empty_seconds: 90}
models:
  gpt-4o-mini: {to: [{model: qwen3-8b, weight: 90}, {model: qwen3-8b-fp8, weight: 10}], fallback: [qwen3-0.6b]}
  qwen3-8b: {to: [{model: qwen3-8b}], fallback: [qwen3-0.6b]}
auth: {mode: keys, keys_file: keys.yaml}
upstream: {api_key: "${POD_KEY:-none}"}
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "poolgate.yaml"
    file.write_text(text)
    return file
