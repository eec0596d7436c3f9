"""Measuring: the same engine that chats, timed."""
