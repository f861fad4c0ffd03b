"""The load: a schedule fixed before the start, who plays it, and what is written down of each request."""
