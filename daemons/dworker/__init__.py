"""The worker: finds the coordinator, joins, runs tasks."""
