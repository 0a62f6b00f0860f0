"""Show results to people: view models, and their renderers (terminal, Markdown, HTML, figures).

Takes plain data, never a store. Imports config, model, stats, data and support.
"""
