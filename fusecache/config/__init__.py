"""The configuration: what may be said in it, and reading it from a TOML file."""
