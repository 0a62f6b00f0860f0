"""The engine of a Ray cluster. Imports as trial."""
