"""Referees: other people's generators put the same load on the gateway as ours, and have to find the same.

A generator that is wrong is wrong in every report, and nothing in the report can tell. AIPerf (NVIDIA) and GuideLLM
(vLLM's project) share no line with ours. `python -m loadtest.referees` lets each of them and ours play the same
prompts for answers of the same lengths at the same rate, in turn, each before a stand that was started for it, and
compares what they print with what our report prints.
"""
