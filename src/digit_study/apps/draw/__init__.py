"""The page to draw digits on. Imports inference, tracking, config, support."""
