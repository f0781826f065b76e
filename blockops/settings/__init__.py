"""
The settings: their table, the types of their values, and their sources.

`table` declares what can be set, `types` how a value is written, and `sources` reads values from
the command line, the environment and the TOML file. The syntax of the command line is in
`blockops.cli`; the objects that the settings describe are built in `blockops.daemon.wiring`.
"""
