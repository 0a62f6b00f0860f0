"""Show results to people: view models, and the terminal, Markdown, HTML and figures as their renderers.

Takes plain data, never a store. Imports config, model, stats, data and support.
"""
