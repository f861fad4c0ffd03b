"""Install Open WebUI into a venv of its own: python -m tests.e2e.webui.install

The venv (0.6 GB) is .webui/venv in the repository, or `venv` in the folder that POOLGATE_WEBUI_HOME names.

Open WebUI asks for torch and for models that run beside it. Started slim it imports none of them, so they are not in
the lock (left-out.txt says which); all that is in it is pinned by hash.
"""

import hashlib
import os
from pathlib import Path

from tests.e2e.installing import VERSION, Home, interpreter, run

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
LOCK = HERE / "requirements.lock"
VARIABLE = "POOLGATE_WEBUI_HOME"


def main() -> None:
    wanted = {"python": VERSION, "made_from": hashlib.sha256(LOCK.read_bytes()).hexdigest()}
    home = Home(Path(os.environ.get(VARIABLE) or REPOSITORY / ".webui").resolve(), wanted)
    with home.alone():
        if home.finished:
            print(f"Open WebUI is in {home.folder}")
            return
        install(home)


def install(home: Home) -> None:
    venv, python = home.folder / "venv", interpreter("Open WebUI")
    home.begin(VARIABLE, venv)

    home.say(f"a venv in {venv}")
    run(python, "-m", "venv", str(venv))

    home.say(f"Open WebUI, {LOCK.read_text().count('==')} packages in all (0.3 GB to fetch)")
    # --no-compile: the first start compiles what it imports.
    pip = (str(venv / "bin" / "python"), "-m", "pip", "-qq", "install", "--no-deps", "--no-compile")
    run(*pip, "--require-hashes", "--requirement", str(LOCK))
    home.finish()


if __name__ == "__main__":
    main()
