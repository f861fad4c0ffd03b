"""`python -m gateway` is `poolgate`."""

from gateway.cli.main import main

main()
