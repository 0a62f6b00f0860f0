"""Which convolutional network reads handwritten digits best, and why you should believe it."""

import os

# Keras reads it when it is imported, by whichever module comes first: the networks here are made
# for TensorFlow, and KERAS_BACKEND or keras.json may name the backend of another project
os.environ["KERAS_BACKEND"] = "tensorflow"
