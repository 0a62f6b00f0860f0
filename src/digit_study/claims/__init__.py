"""What a network may claim: calibrated probabilities, prediction sets, and when to abstain. Imports data, training."""
