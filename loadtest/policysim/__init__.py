"""Which policy is better, by simulation: the gateway's own policy code over seeded workloads and modelled pods.

`python -m loadtest.policysim`. A pod is a model of vLLM's scheduler and prefix cache (`engine`), whose times were
measured at a real one (`profiles`, `calibrate`). The gateway is its own code for choosing, with as many independent
replicas as a cell asks for (`replica`). Everything is drawn from a seed, so a run can be repeated to the last digit.
"""
