"""The command line; uses only the client library."""
