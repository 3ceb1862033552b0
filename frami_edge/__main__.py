"""`python -m frami_edge` is `frami-edge`."""

from frami_edge.cli import main

main()
