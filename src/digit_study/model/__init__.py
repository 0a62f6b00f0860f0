"""Build, train and calibrate one network. Imports stats, data, support."""
