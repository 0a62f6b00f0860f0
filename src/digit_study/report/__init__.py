"""Render results for people: terminal, Markdown, HTML, figures. Imports config to support."""
