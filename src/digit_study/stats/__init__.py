"""Measure and compare networks: pure functions on arrays. Imports data, support."""
