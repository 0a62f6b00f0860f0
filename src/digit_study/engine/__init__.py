"""A trial, from config to tracked run, and engines. Imports tracking, config, training, evaluation, data, terminal."""
