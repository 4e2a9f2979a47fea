"""The simulator: the real cores and the real codec in virtual time, under faults drawn from a seed. See README.md."""
