"""Figures, drawn with matplotlib. Imports stats, data, support."""
