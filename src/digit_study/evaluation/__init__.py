"""How good is a model, and is one better than another? Metrics, rankings, charts. Imports data, terminal."""
