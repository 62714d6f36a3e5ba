"""``python -m infra.cli``: the command, as children of a ring are started."""

from infra.cli.main import main

main()
