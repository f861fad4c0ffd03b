"""`python -m loadtest.simulator`."""

from loadtest.simulator.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
