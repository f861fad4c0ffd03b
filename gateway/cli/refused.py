"""What a command says that cannot go on."""


class Refused(Exception):
    """A command that cannot go on; its text is for the operator. Exit code 2."""
