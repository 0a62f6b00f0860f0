"""The digits: where they come from, their digests, the split, augmentation, the sealed test set. Imports terminal."""
