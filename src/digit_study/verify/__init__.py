"""Is it true? The best on fresh seeds, two runs compared, one run again. May import all but champion and reading."""
