"""The command line as tests run it: in this process, over a small configuration."""

from pathlib import Path

from click.testing import CliRunner, Result

from fusecache.cli.main import main

CONFIG = """
[mount]
state_dir = "state"
[backend]
type = "directory"
path = "images"
[[stack]]
images = ["*"]
[[stack.layer]]
index = 0
plugin = "passthrough"
"""


def write_config(directory: Path) -> Path:
    """Make a configuration over one image, ``disk``, with all it names in *directory*; return its path."""
    (directory / "images").mkdir()
    (directory / "images" / "disk").write_bytes(bytes(4096))
    file = directory / "fusecache.toml"
    file.write_text(CONFIG)
    return file


def fusecache(*arguments: str | Path) -> Result:
    """Run the command with *arguments*."""
    return CliRunner().invoke(main, list(map(str, arguments)))
