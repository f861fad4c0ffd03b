"""Every parser we own, fed with bytes that nobody meant, and held to what it promises.

A target is a function that takes bytes and returns nothing; it raises when the parser breaks its word: an error that
its docstring does not name, a reading that a second parser contradicts, a result that depends on how the bytes were
cut into pieces. `make fuzz` drives the targets by coverage (atheris), for as long as it is told; pytest replays what
was ever found worth keeping (`corpus/`, `crashes/`), and tries a few hundred mutations that are the same each time.
"""
