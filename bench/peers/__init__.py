"""Other systems that give tasks to workers, each an adapter of one small interface, measured beside districomp.

A module a system: its class says how it is installed and started (`base.Peer`), and run as a program in the system's
own virtual environment, it is the client that is measured (`driver.serve`). So a module imports nothing but the
standard library and `bench.peers` at its top. Nothing of these systems is part of districomp.
"""
