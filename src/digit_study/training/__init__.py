"""The stages of one training: networks, recipe, fit, figures of a run. Imports evaluation, data, terminal."""
