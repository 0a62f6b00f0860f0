"""Train one configuration; engines and the runner. Imports tracking to support."""
