"""The ops port (FastAPI), and the pipeline as an ASGI application."""
