"""Is it true? The best configurations on fresh seeds, two runs side by side, one run made again."""
