"""What the gateway does against faults, each as a value: its name, what it does, and how to build a gateway without it.

There is a module for each section of the rows; a defence that several sections prove stands in the first of them. It is
removed by a class that lacks it, or by a bound without an end: by what `Parts` takes, never by changing a module. What
replaces it is what a careless gateway would do.
"""

from importlib import import_module

from tests.scenes.rows import SECTIONS
from tests.scenes.scene import Defence


def defences() -> tuple[Defence, ...]:
    """All of them, in the order of the sections and as they stand there."""
    modules = [import_module(f"{__name__}.{section.module}") for section in SECTIONS]
    return tuple(value for module in modules for value in vars(module).values() if isinstance(value, Defence))
