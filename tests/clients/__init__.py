"""Clients used as their users use them: one list of calls, played before simulated pods and before a real vLLM.

Each public function of a `with_*` module is one call: it takes a `Front`, asks, and asserts on what it got. Nothing in
them knows which backend answers. `node/with_openai.mjs` is the same list for openai-node.
"""
