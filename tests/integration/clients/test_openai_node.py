"""openai-node, before simulated pods."""

import pytest

from tests.clients.front import Front
from tests.clients.with_node import CALLS, FAILURES, checks_of, play_check

pytestmark = pytest.mark.program("node")


@checks_of(CALLS)
def test_openai_node(check: str, front: Front) -> None:
    play_check(CALLS, check, front)


@checks_of(FAILURES)
def test_openai_node_when_a_pod_fails(check: str, front: Front) -> None:
    play_check(FAILURES, check, front)
