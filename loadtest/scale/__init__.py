"""Scale on paper: from measured figures to replicas, a Redis, and the next wall; the page is docs/scale.md.

`figures.json` holds what was measured, each figure with the command that measures it, and nothing else is an input but
the gateway's own constants, which are imported. `capacity` says what one replica carries, `plan` what a load needs,
`walls` what ends first. `autoscaling` simulates the loop that adds replicas, `balancing` what many replicas do to the
choice of pods, and `counting` measures the one figure that no bench has: what a call costs Redis.
"""
