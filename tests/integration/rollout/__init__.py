"""Rolling restarts and sudden deaths under load, with every part a process of its own: what callers see of them.

`lines` is a caller's connection, `callers` the load and the verdict on each answer, `processes` the gateways and the
simulated pods, `service` takes gateways in and out of rotation by their readiness, and `deployment` leads pods through
their lives at a stand-in API server. `make rollout` runs the same tests for longer.
"""
