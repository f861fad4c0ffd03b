"""A soak: gateways, simulated pods, an API server and a Valkey under mixed traffic, while faults befall them at random.

Every gateway, pod and Valkey is a process of its own; callers, API server, the taps before the pods and the checker of
`loadtest.invariants` live in ours. `callers` ask `replicas` before `pods`, `faults` befall them, `resting` judges what
must come back, and `soak` puts all of it together.

`make soak` takes 20 minutes (`MINUTES=20`) and prints its seed; `SEED=...` draws the same requests and faults again.
`test_short_soak.py` is a minute of it.
"""
