"""What is there wins, what is missing is made, and what does not fit is told: with no secret in the words."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from gateway.cli.secrets_plan import Content, Place, Plan, content_for, plan_of, troubles_in
from gateway.config.document import parsed
from gateway.config.keys import entries_in
from gateway.config.secrets import SecretsSpec, load_secrets
from gateway.limits.keys import digest, new_key, well_formed
from tests.unit.config.test_secrets import SHIPPED

WEBUI, FIRST, FILE = (Place("poolgate", name) for name in ("open-webui", "poolgate-first-key", "poolgate-keys"))
GATEWAYS, PODS = Place("poolgate", "vllm-api-key"), Place("vllm", "vllm-api-key")
CANARY = b"canary-secret-77aa"


@pytest.fixture
def plan() -> Plan:
    return plan_of(load_secrets(SHIPPED), namespaced=True)


def made(plan: Plan, there: Mapping[Place, Content | None] | None = None) -> dict[Place, Content]:
    """What a run leaves behind that finds this."""
    held = {place: content for place, content in (there or {}).items() if content is not None}
    for place in plan.places:
        if place not in held:
            held[place] = content_for(place, plan, held)
    return held


def troubles(plan: Plan, there: Mapping[Place, Content | None]) -> list[str]:
    told = list(troubles_in(plan, there))
    assert CANARY.decode() not in "".join(told)
    return told


def test_the_keys_file_comes_last_and_a_secret_of_several_entries_once(plan: Plan) -> None:
    assert list(plan.places)[-1] == FILE
    assert sorted(plan.places[WEBUI]) == ["admin-password", "api-key", "secret-key"]
    assert len(plan.places) == 7


def test_in_a_folder_each_secret_is_there_once() -> None:
    plan = plan_of(load_secrets(SHIPPED), namespaced=False)
    assert [str(place) for place in plan.places].count("vllm-api-key") == 1


def test_a_first_run_makes_all_and_finds_no_trouble_in_it(plan: Plan) -> None:
    there = made(plan)
    assert troubles(plan, there) == []
    assert {place: tuple(content) for place, content in there.items()} == dict(plan.places)
    assert there[GATEWAYS] == there[PODS]
    assert well_formed(there[FIRST]["key"])
    assert well_formed(there[WEBUI]["api-key"])


def test_the_keys_file_lets_in_whom_the_texts_belong_to(plan: Plan) -> None:
    there = made(plan)
    entries = {entry.sha256: entry.tenant for entry in entries_in(parsed(there[FILE]["keys.yaml"], "keys.yaml"))}
    demo, webui = entries[digest(there[FIRST]["key"])], entries[digest(there[WEBUI]["api-key"])]
    assert (demo.team, demo.forwards_user, webui.team, webui.forwards_user) == ("demo", False, "open-webui", True)
    assert demo.key_id == there[FIRST]["key"][6:14].decode()
    for content in there.values():
        assert all(value not in there[FILE]["keys.yaml"] for name, value in content.items() if name != "keys.yaml")


def test_a_random_text_is_a_text_wherever_it_is_put(plan: Plan) -> None:
    values = {made(plan)[GATEWAYS]["api-key"].decode() for _ in range(200)}
    assert len(values) == 200
    for value in values:
        assert re.fullmatch(r"s[-\w]{32}", value)  # 192 bits
        assert yaml.safe_load(value) == value


def test_what_is_in_one_namespace_is_copied_to_the_other(plan: Plan) -> None:
    for here, missing in ((GATEWAYS, PODS), (PODS, GATEWAYS)):
        assert made(plan, {here: {"api-key": CANARY}})[missing] == {"api-key": CANARY}


def test_a_key_that_is_there_has_its_digest_in_the_keys_file(plan: Plan) -> None:
    """Brought by its owner, in a form of its own, with the newline that an editor leaves."""
    there = made(plan, {FIRST: {"key": CANARY + b"\n"}})
    assert digest(CANARY).encode() in there[FILE]["keys.yaml"]
    assert troubles(plan, there) == []


@pytest.mark.parametrize(
    "content", [{}, {"api-key": b"sk-x"}, {"api-key": b"sk-x", "secret-key": b""}, {"other": CANARY}]
)
def test_a_secret_that_lacks_an_entry_is_told(plan: Plan, content: Content) -> None:
    told = troubles(plan, {WEBUI: content})
    assert any(line.startswith("the Secret poolgate/open-webui has no entry secret-key, and what") for line in told)


def test_entries_that_nobody_asked_for_are_no_trouble(plan: Plan) -> None:
    there = made(plan)
    assert troubles(plan, there | {FIRST: {**there[FIRST], "note": CANARY}}) == []


def test_two_values_of_one_name_are_told(plan: Plan) -> None:
    (told,) = troubles(plan, {GATEWAYS: {"api-key": CANARY}, PODS: {"api-key": b"another"}})
    assert told.startswith("the entry api-key of the Secret vllm/vllm-api-key is not that of poolgate/vllm-api-key: ")


def test_a_key_that_the_keys_file_does_not_have_is_told(plan: Plan) -> None:
    there: dict[Place, Content | None] = {**made(plan), FIRST: {"key": CANARY}}
    (told,) = troubles(plan, there)
    assert told.startswith("the entry key of the Secret poolgate/poolgate-first-key opens nothing: the entry keys.yaml")
    assert "poolgate keys create --team demo --file keys.yaml" in told


def test_a_key_that_is_gone_is_not_made_anew_beside_a_keys_file(plan: Plan) -> None:
    (told,) = troubles(plan, {**made(plan), FIRST: None})
    assert told.startswith("the entry key of the Secret poolgate/poolgate-first-key is missing, while the entry")


@pytest.mark.parametrize("state", ["disabled: true", "note: x"])
def test_what_was_done_to_a_keys_entry_is_left_alone(plan: Plan, state: str) -> None:
    there = made(plan)
    changed = there[FILE]["keys.yaml"].replace(b"  team: demo\n", f"  team: demo\n  {state}\n".encode())
    assert troubles(plan, {**there, FILE: {"keys.yaml": changed}}) == []


def test_a_keys_file_with_a_fault_is_told_with_its_line(plan: Plan) -> None:
    there = {**made(plan), FILE: {"keys.yaml": b"keys:\n- id: a\n"}}
    (told,) = [line for line in "\n".join(troubles(plan, there)).splitlines() if "team" in line]
    assert told.startswith(
        "the entry keys.yaml of the Secret poolgate/poolgate-keys:2: keys.0.team: this key is missing"
    )


@pytest.mark.parametrize("key", [CANARY + b" b", b"caf\xc3\xa9", b"\n", b"a\nb", b"x" * 5000])
def test_what_cannot_be_sent_as_a_key_is_told(plan: Plan, key: bytes) -> None:
    (told,) = troubles(plan, {FIRST: {"key": key}})
    assert told.startswith("the entry key of the Secret poolgate/poolgate-first-key is no API key")


def test_one_key_for_two_callers_is_told(plan: Plan) -> None:
    key = new_key()[1].encode()
    told = troubles(
        plan, {FIRST: {"key": key}, WEBUI: {"api-key": key, "secret-key": CANARY, "admin-password": CANARY}}
    )
    assert told == [
        "the entry api-key of the Secret poolgate/open-webui is the key of another entry too: give each its own"
    ]


def spec(**given: Any) -> SecretsSpec:
    return SecretsSpec.model_validate(given)


def test_without_keys_there_is_no_keys_file() -> None:
    plan = plan_of(spec(random=[{"secret": "a", "entry": "b", "namespaces": ["x"]}]), namespaced=True)
    assert list(made(plan)) == [Place("x", "a")]
