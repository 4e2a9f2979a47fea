"""The tests; CONTRIBUTING.md says what belongs into which folder."""
