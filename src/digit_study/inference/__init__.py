"""Predict digits in image files; refuse what is no digit. Imports tracking to support."""
