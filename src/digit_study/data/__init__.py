"""Digits: their sources, digests, the split, the sealed test set. Imports pictures and support."""
