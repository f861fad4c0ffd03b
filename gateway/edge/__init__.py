"""The public port, whole."""
