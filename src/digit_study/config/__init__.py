"""Configs of runs, studies and promotions: schemas, composing, and the search space.

Imports model, stats, data, support.
"""
