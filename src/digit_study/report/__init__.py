"""Show results to people: view models, and their renderers (terminal, Markdown, HTML, figures).

Takes plain data, but for Optuna's pictures, which read the study that they are given. Imports
config, model, stats, data and support.
"""
