"""What a scenario is played on, and what is said of it: docs/load-tests.md.

cores      which cores the gateways have, and which the rest; a child process on them
ports      a port that stays somebody's own while nobody listens there
looking    one GET past all that is measured; series of an exposition
pods, gateways, redis   one process each, and what can be done to it
cluster    the tests' API server, in a checkout
stand      all of them together, ready: `simulated(scenario, ...)`
watching   samples of what pods hold and gateways take while they are loaded
faults     what befalls the stand, each with its mark
verdicts   `judged(evidence)`: one judge for each expectation, pure
run        `run(scenario, asked, progress)` -> the report's `Run`
"""
