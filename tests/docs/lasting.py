"""Runs a command that has no end: until it says that it is up, then Ctrl-C. Exit 0 if it took that well.

python -m tests.docs.lasting poolgate serve --config poolgate.yaml
"""

import os
import signal
import subprocess
import sys
import threading

UP = ("serves on http", "Poolgate is up", '{"ready":')
"""What gateway, demo and simulator say."""
WELL = (0, 130, -signal.SIGINT)
"""An end by Ctrl-C. `make` dies of the signal itself."""
SECONDS = 40.0


def main(command: list[str]) -> int:
    """The exit code."""
    # A session of its own, so that Ctrl-C reaches all of it, as on a terminal, and nobody else.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        watch = threading.Timer(SECONDS, os.killpg, (process.pid, signal.SIGKILL))
        watch.start()
        try:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if any(words in line for words in UP):
                    os.killpg(process.pid, signal.SIGINT)
                    said += process.stdout.read()
            code = process.wait()
        finally:
            watch.cancel()
    sys.stderr.write(said)
    return 0 if code in WELL and any(words in said for words in UP) and "Traceback" not in said else code or 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
