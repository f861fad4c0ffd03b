"""Whatever stands behind the gateway sees one request for each that was accepted, with its very bytes, and no other."""

from pathlib import Path

import pytest

from scripts.write_smuggling_docs import PAGE, answers, pinned
from tests.running import running
from tests.smuggling.judging import tried, verdict
from tests.smuggling.parsers import PARSERS, PROGRAMS, recorder
from tests.smuggling.vectors import BODY, VECTORS, Law, Ours

KINDS = [
    pytest.param(kind, marks=[pytest.mark.program(PROGRAMS[kind])] if kind in PROGRAMS else []) for kind in PARSERS
]


def test_each_vector_has_a_name_of_its_own() -> None:
    assert len({vector.name for vector in VECTORS}) == len(VECTORS) >= 60


def test_what_must_be_refused_is() -> None:
    taken = [vector.name for vector in VECTORS if vector.law is Law.REFUSE and vector.ours is Ours.ONE]
    assert taken == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_pod_sees_what_was_accepted_and_nothing_else(kind: str, tmp_path: Path) -> None:
    async with recorder(kind, tmp_path) as pod, running([pod]) as gateway:
        told = await tried(gateway.port, VECTORS, gateway.key.encode(), lambda: gateway.gateway.pipeline.active)
        await gateway.settled()
        accepted = []
        for vector, said in told.items():
            seen = [vector.body] if said.statuses == (200,) else []
            assert verdict(vector, said, seen) == vector.ours, vector.name
            accepted += seen
        assert sorted(body for _, _, body in pod.requests()) == sorted(accepted)
        assert len(accepted) > 20
        assert all(body == BODY for body in accepted)


def test_the_page_says_what_the_gateway_does() -> None:
    page = PAGE.read_text("utf-8")
    mend = "write docs/smuggling.md anew: .venv/bin/python -m scripts.write_smuggling_docs"
    rows = [line for line in page.splitlines() if " **" in line and line.startswith("| ")]
    told = [line.removeprefix("| ").split(" | ")[:3] for line in rows if "**gateway**" not in line]
    assert told == [pinned(vector).split(" | ") for vector in VECTORS], mend
    assert page.endswith(answers()), mend
