"""Requests and answers that two parsers may read in two ways, tried on real sockets.

A smuggled request lives in the difference between two parsers. So the gateway may take only what has one meaning, and
what a pod gets is written anew: its parser sees one request for each that was accepted, with the bytes that were
checked, and none for one that was refused. `docs/smuggling.md`, written by `scripts/write_smuggling_docs.py`, shows
beside the gateway what each of the parsers that can be had makes of the same bytes.
"""
