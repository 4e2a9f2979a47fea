"""The coordinator: owns jobs, hands tasks out, records results."""
