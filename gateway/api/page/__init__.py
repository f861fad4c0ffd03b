"""The status page: a status, as `/status.json` says it, made HTML; and the events that keep open pages true."""
