"""``python -m vocoder_plugin``: the command line."""

from .commands.cli import main

main()
