"""The life of one request, top to bottom; `serve.py` is the table of contents."""
