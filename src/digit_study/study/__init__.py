"""What is trained next, and the life of a study. Imports every package below."""
