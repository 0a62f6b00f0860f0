"""Configs of runs, studies, promotions: schemas, rules, composing. Imports training, evaluation, data, terminal."""
