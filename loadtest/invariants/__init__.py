"""An online checker of what a gateway promises, from outside: nothing of `gateway` is imported.

    checker = Checker(Bounds(canaries=("secret-7",)))
    checker.hear(RequestSent(now, "r1", "gateway-0", Shape.CHAT))
    ...
    checker.quiescent(now)
    assert not checker.violations

Clients, pods, access lines and scrapes are fed as `events`; `hearing` makes those of a client's and a pod's side of one
exchange out of what an HTTP parser reports. `lives` joins the sides by the request's id, `rules` has the sixteen
invariants, and `checker` judges while it runs and forgets what is over.

What cannot be seen from outside: which pods a gateway held for ejected when it chose (I7 judges that by `Picked`, for
whoever runs the gateway in the same process, and by what the cluster said otherwise); that a reservation of tokens was
given back (I6 judges what was charged); which connections were tried and refused (I8 has them from the access line).
"""

from loadtest.invariants.checker import Checker, Violation
from loadtest.invariants.events import Event, How, Kind, Piece, RequestSent, Shape
from loadtest.invariants.hearing import ClientSide, PodSide
from loadtest.invariants.pieces import shape_of
from loadtest.invariants.rules import RULES, Bounds

__all__ = [
    "RULES", "Bounds", "Checker", "ClientSide", "Event", "How", "Kind", "Piece", "PodSide", "RequestSent", "Shape",
    "Violation", "shape_of",
]  # fmt: skip
