"""Which digit an image file or a drawing shows, according to a Keras model. May import terminal, data, tracking."""
