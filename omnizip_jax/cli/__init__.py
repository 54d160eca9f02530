"""The `omnizip` command: options, commands, demo, terminal output."""
