"""The chat screen: prompt line, slash commands, streaming, and the filter for control characters."""
