"""``python -m fusecache``: the command line without an installed script."""

from fusecache.cli.main import main

main(prog_name="fusecache")
