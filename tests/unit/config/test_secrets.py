"""What `poolgate secrets` is to make is judged whole: each fault with its line and the mend."""

from pathlib import Path

import pytest

from gateway.config.faults import ConfigError
from gateway.config.secrets import SecretsSpec, load_secrets

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "deploy" / "kustomize" / "components" / "first-secrets" / "secrets.yaml"
PASSWORD = "- {secret: redis, entry: password, namespaces: [poolgate]}"
KEY = "- {team: demo, secret: first, entry: key, namespaces: [poolgate]}"
FILE = "keys_file: {secret: keys, entry: keys.yaml, namespaces: [poolgate]}"


def loaded(folder: Path, text: str) -> SecretsSpec:
    file = folder / "secrets.yaml"
    file.write_text(text)
    return load_secrets(file)


def faults(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_the_secrets_that_are_shipped_are_valid() -> None:
    spec = load_secrets(SHIPPED)
    assert [key.team for key in spec.keys] == ["demo", "open-webui"]
    assert spec.keys_file is not None


def test_an_entry_of_keys_says_what_its_key_may(tmp_path: Path) -> None:
    text = KEY.replace("}", ', models: ["qwen*"], debug: true}')
    (key,) = loaded(tmp_path, f"keys:\n{text}\n{FILE}\n").keys
    assert (key.models, key.debug, key.forwards_user) == (("qwen*",), True, False)


def test_every_fault_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    text = "random:\n- {secret: a, entry: b}\n- {secret: A_, entry: b, namespaces: [x]}\nkeys: 7\nkey_file: {}\n"
    assert faults(tmp_path, text) == [
        "secrets.yaml:2: random.0.namespaces: this key is missing: give a list, such as [a, b]",
        "secrets.yaml:3: random.1.secret: 'A_' is no Secret's name: small letters and digits, and between them - and .",
        "secrets.yaml:4: keys: give a list, such as [{...}, {...}], not a single value",
        "secrets.yaml:5: key_file: this key does not exist: did you mean keys_file?",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "secrets.yaml: (file): there is nothing to make: name entries below random: or keys:"),
        ("random: []\n", "secrets.yaml:1: (file): there is nothing to make: name entries below random: or keys:"),
        (
            f"random:\n{PASSWORD}\n{PASSWORD}\n",
            (
                "secrets.yaml:3: random.1.entry: the entry password of the Secret redis stands here twice: keep one of "
                "them"
            ),
        ),
        (
            f"random:\n- {{secret: first, entry: key, namespaces: [b]}}\nkeys:\n{KEY}\n{FILE}\n",
            "secrets.yaml:4: keys.0.entry: the entry key of the Secret first stands here twice: keep one of them",
        ),
        (
            "random:\n- {secret: a, entry: b, namespaces: [x, y, x]}\n",
            "secrets.yaml:2: random.0.namespaces.2: x stands here twice: keep one of them",
        ),
        (
            "random:\n- {secret: a, entry: b, namespaces: []}\n",
            "secrets.yaml:2: random.0.namespaces: give at least 1 entry",
        ),
        (
            f"keys:\n{KEY}\n",
            "secrets.yaml:1: keys: keys want a file for their digests: say where it is by keys_file:",
        ),
        (
            f"random:\n{PASSWORD}\n{FILE}\n",
            "secrets.yaml:3: keys_file: there is no key to stand in it: name one below keys:, or remove it",
        ),
        (
            f"keys:\n{KEY}\n{FILE.replace('secret: keys', 'secret: first')}\n",
            (
                "secrets.yaml:3: keys_file.secret: the keys file is made last, so nothing else may be in its Secret: "
                "give it one of its own"
            ),
        ),
    ],
)
def test_what_cannot_be_made_is_a_fault_with_its_mend(tmp_path: Path, text: str, told: str) -> None:
    assert faults(tmp_path, text) == [told]


@pytest.mark.parametrize("name", ["..", ".", "..data", "a/b", "../a", "", "a b", "x" * 254])
def test_no_entry_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    (told,) = faults(tmp_path, f"random:\n- {{secret: a, entry: '{name}', namespaces: [x]}}\n")
    assert "secrets.yaml:2: random.0.entry: " in told


@pytest.mark.parametrize("name", ["..", ".a", "a/b", "../a", "", "a_b", "A", "a.", "x" * 254])
def test_no_secret_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    (told,) = faults(tmp_path, f"random:\n- {{secret: '{name}', entry: a, namespaces: [x]}}\n")
    assert "secrets.yaml:2: random.0.secret: " in told


def test_a_namespace_is_a_label(tmp_path: Path) -> None:
    (told,) = faults(tmp_path, "random:\n- {secret: a, entry: a, namespaces: [x.y]}\n")
    assert "random.0.namespaces.0: 'x.y' is no namespace" in told
