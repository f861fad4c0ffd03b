"""How a fault is written down."""

from __future__ import annotations

import pytest

from loadtest.simulator import BadFault, Fault, FaultKind, Garbage
from loadtest.simulator.faults import fault_from_json, fault_from_text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("never_answer", Fault(FaultKind.NEVER_ANSWER)),
        ("stall:3", Fault(FaultKind.STALL, after=3)),
        ("drip:0.5", Fault(FaultKind.DRIP, seconds_per_token=0.5)),
        ("status:502", Fault(FaultKind.STATUS, status=502)),
        ("garbage:junk_body", Fault(FaultKind.GARBAGE, what=Garbage.JUNK_BODY)),
        (
            "status:status=503,retry_after_seconds=2,count=4",
            Fault(FaultKind.STATUS, status=503, retry_after_seconds=2, count=4),
        ),
        ("reset:after=2,share=0.25", Fault(FaultKind.RESET, after=2, share=0.25)),
        ('{"kind": "cut", "after": 1}', Fault(FaultKind.CUT, after=1)),
    ],
)
def test_a_fault_is_a_kind_and_perhaps_arguments(text: str, fault: Fault) -> None:
    assert fault_from_text(text) == fault


@pytest.mark.parametrize("kind", FaultKind)
def test_every_kind_can_be_named_alone(kind: FaultKind) -> None:
    assert fault_from_text(kind.value).kind is kind
    assert fault_from_json(b'{"kind": "%b"}' % kind.value.encode()).kind is kind


@pytest.mark.parametrize("text", ["explode", "", "explode:3", '{"kind": "explode"}', '{"after": 3}'])
def test_an_unknown_kind_is_refused_and_the_known_ones_are_named(text: str) -> None:
    with pytest.raises(BadFault) as caught:
        fault_from_text(text)

    assert all(kind in str(caught.value) for kind in FaultKind)


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("stall:soon", "after"),
        ("stall:after=-1", "after"),
        ("stall:when=3", "when"),
        ("stall:count=0", "count"),
        ("stall:share=0", "share"),
        ("stall:share=1.5", "share"),
        ("drip:-1", "negative"),
        ("status:99", "status"),
        ("garbage:rubbish", "rubbish"),
        ("[1]", "kind"),
        ('{"kind": "stall", "after": "x"}', "after"),
        ("{", "not a fault"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(text: str, about: str) -> None:
    with pytest.raises(BadFault, match=about):
        fault_from_text(text)
