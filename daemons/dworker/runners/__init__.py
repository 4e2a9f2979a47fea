"""How a task runs: one file a kind of runner."""
