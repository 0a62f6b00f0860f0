"""Which registered network is champion, since when, on what evidence. May import terminal to tracking; no engine."""
