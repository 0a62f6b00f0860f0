"""Which digit an image file shows, according to a Keras model. May import terminal and tracking."""
