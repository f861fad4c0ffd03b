"""`poolgate demo`: simulated pods in a process of their own, a fresh key, and a curl to paste."""

import json
import subprocess
import sys
from pathlib import Path
from shutil import which
from types import TracebackType
from typing import Any, Self

from gateway.core.caller import Tenant
from gateway.limits.keys import KeyEntry, digest, new_key

NAME = "poolgate"
MODELS = ("qwen3-8b", "llama-3.1-8b")
PODS_PER_MODEL = 3


class DemoFailed(Exception):
    """The demo cannot run; the text says why."""


class Demo:
    """The demo's pods, for the length of a `with` block, and its key."""

    def __init__(self) -> None:
        self.pods: list[dict[str, Any]] = []
        key_id, self._key = new_key()
        self.key_entry = KeyEntry(digest(self._key.encode("ascii")), Tenant(key_id, team="demo", debug=True))
        self._simulator: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        pools = [f"--pool={model}:{PODS_PER_MODEL}" for model in MODELS]
        self._simulator = subprocess.Popen(  # noqa: S603  # our own module, by our own interpreter
            # No key, whatever VLLM_API_KEY says here.
            [sys.executable, "-m", "loadtest.simulator", "--port-base=0", "--api-key=", *pools],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._simulator.stdout is not None
        line = self._simulator.stdout.readline()
        if not line:
            raise DemoFailed("the simulated pods did not start: see their words above")
        ready = json.loads(line)
        self.pods = [{"name": pod["name"], "url": pod["url"], "pool": pod["model"]} for pod in ready["ready"]]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._simulator is not None:
            self._simulator.kill()
            self._simulator.wait()

    def tell(self, base_url: str, ops_url: str) -> None:
        """Print what a person needs, on stderr: stdout is the access line's."""
        sys.stderr.write(
            f"""
Poolgate is up: {len(self.pods)} simulated vLLM pods, {len(MODELS)} models. Ctrl-C ends it.

  base URL   {base_url}/v1
  API key    {self._key}
  status     {ops_url}/status
  metrics    {ops_url}/metrics

  POOLGATE_API_KEY={self._key} {_own_name()} chat "Hello!" --url {base_url}

  curl -N {base_url}/v1/chat/completions \\
    -H 'Authorization: Bearer {self._key}' -H 'Content-Type: application/json' \\
    -d '{{"model": "{MODELS[0]}", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'

"""
        )
        sys.stderr.flush()


def _own_name() -> str:
    """The command as it can be typed where the demo was started."""
    return sys.argv[0] if Path(sys.argv[0]).name == NAME and which(NAME) is None else NAME
