"""``python -m stalwart``: the command line."""

from stalwart.cli.main import run

run()
