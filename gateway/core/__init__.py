"""Values, errors, clock and cell: no I/O, no framework, imported by everyone."""
