"""Stabilized lottery tickets for the Transformer: the study as a thin library under notebooks."""
