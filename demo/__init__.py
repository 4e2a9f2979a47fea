"""The demonstration: a whole cluster on this machine, doing real work. `python -m demo`, or `make demo`."""
