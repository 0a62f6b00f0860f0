"""Markdown as MLflow shows it: text without markup, and links to MLflow's pages."""

import re


def escape(text: str) -> str:
    r"""Return a text as Markdown shows it: names that contain markup, as ``<img …>``, stay text."""
    line = text.replace("\n", " ")
    return re.sub(r"([\\`*\[\]|<>])", r"\\\1", line)


def run_page(experiment: str, run_id: str) -> str:
    """Return the page of a run, as a link from any other page of MLflow."""
    return f"#/experiments/{experiment}/runs/{run_id}"
