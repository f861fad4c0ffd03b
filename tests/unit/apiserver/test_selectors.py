"""Labels are matched as the real server does."""

import pytest

from tests.apiserver.selectors import BadSelector, parse_selector

LABELS = {"app": "vllm", "tier": "gpu", "app.kubernetes.io/name": "chat"}


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("", True),
        ("app=vllm", True),
        ("app==vllm", True),
        ("app = vllm", True),
        ("app=other", False),
        ("app!=other", True),
        ("absent!=x", True),
        ("app", True),
        ("absent", False),
        ("!absent", True),
        ("! app", False),
        ("app in (vllm, other)", True),
        ("app in (other)", False),
        ("app notin (other)", True),
        ("app notin (vllm)", False),
        ("absent in (x)", False),
        ("absent notin (x)", True),
        ("app in (vllm,x),tier=gpu,!absent", True),
        ("app in (vllm,x),tier=cpu", False),
        ("app.kubernetes.io/name=chat", True),
        ("absent=", False),
    ],
)
def test_a_selector_matches_what_kubernetes_matches(selector: str, matches: bool) -> None:
    assert parse_selector(selector)(LABELS) is matches


@pytest.mark.parametrize("selector", ["a b", "app in vllm", "=x", "app=a=b", "app in (a"])
def test_what_cannot_be_read_is_refused(selector: str) -> None:
    with pytest.raises(BadSelector):
        parse_selector(selector)
