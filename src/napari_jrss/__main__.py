"""``python -m napari_jrss``: the command line."""

from napari_jrss.cli import main

main()
