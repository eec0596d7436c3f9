"""The command line: the only room that knows Typer, Rich and prompt-toolkit.

One file a command: parse, call, render. Whatever takes time to import is imported inside the commands, so that
`--help` is instant.
"""
