"""Apps for people: the page to draw on. Imports every package below."""
