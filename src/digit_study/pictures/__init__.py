"""Bring a picture of a digit to the 28x28 pixels that MNIST would hold. Imports support."""
