"""Words that must not come out anywhere: in a log, a metric or an error."""

PROMPT = "canary-prompt-5e1f"
LOOPBACK = "127.0.0.1"
"""Where pods and clients of a scene live."""
