"""A stand-in for the Kubernetes API server, for tests of discovery and of secrets. Start at `server.ApiServer`.

- `server.py`: listens, lives and dies, misbehaves, keeps what was asked; `access.py`: tokens and RBAC.
- `cluster.py`: what happens to pods; `pods.py`: their JSON; `log.py`: what etcd keeps of it.
- `secrets.py`: Secrets, read by name and created.
- `asked.py`: a request's options; `listing.py`, `watching.py`: the two answers; `statuses.py`: the refusals.
- `http.py`: the bytes; `clock.py`: time that a test may push; `selectors.py`: labels.
- `replay.py`: another server, which plays recordings of the real one byte by byte.
"""
