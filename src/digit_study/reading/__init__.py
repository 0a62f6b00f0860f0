"""Image files to digits, with a registered model."""
