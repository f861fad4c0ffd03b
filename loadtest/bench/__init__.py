"""What the gateway costs beside nginx: `python -m loadtest.bench`; the method is in docs/performance.md.

wire       the bytes: requests, and the answers a vLLM gives to them
pacer      many streams, each on its own beat, spread evenly over time
backend    the cheapest pod that sends those bytes (a process of its own, on the apparatus' core)
client     the load: closed loops and streams, every answer checked to be whole
targets    what is measured: nginx, the gateway, or nothing in between
processes  child processes pinned to a core, which never outlive the run
accounting CPU time, time spent waiting for a core, and memory, from /proc
scenarios  one round: warm up, watch a window, end cleanly
report     rounds -> medians, ratios, bars, one Markdown table
limits     the same requests through gateways with different limits: a table of its own
discovery, choice   benches of their own: 1,000 pods watched, and the choice of one of many
"""
