"""Which convolutional network reads handwritten digits best, and why you should believe it."""
