"""Arrays of digits: their types, and the numbers that all of MNIST's images have in common."""

import numpy as np
import numpy.typing as npt

#: Grey values, 0 (paper) to 255 (ink).
Pixels = npt.NDArray[np.uint8]
#: Digits 0 to 9, or positions in a source.
Labels = npt.NDArray[np.int64]
#: Images (n, 28, 28, 1), in :mod:`digit_study.data.formats` (n, 28, 28), and their labels (n,).
Arrays = tuple[Pixels, Labels]

#: Height and width of an image, in pixels.
IMAGE_SIDE = 28
#: How many digits there are.
CLASSES = 10
