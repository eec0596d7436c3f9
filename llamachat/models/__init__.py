"""Which models exist, and which are here."""
