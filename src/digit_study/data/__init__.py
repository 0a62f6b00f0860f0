"""The digits: where they come from, their digests, the split, the sealed test set. Imports support."""
