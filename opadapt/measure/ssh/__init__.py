"""Boards over SSH: one event loop, a connection, and the transport that starts the agent over it."""
