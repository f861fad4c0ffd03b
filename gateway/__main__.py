"""`python -m gateway` is `poolgate`."""

from gateway.cli import main

main()
