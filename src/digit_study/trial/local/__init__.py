"""The engine of one machine: forked workers. Imports as trial."""
