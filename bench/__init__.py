"""Benchmarks: run by a person, print the machine and the date with their figures; never tests."""
