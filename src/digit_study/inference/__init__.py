"""Predict digits and numbers in image files; refuse what is none. Imports tracking to support."""
