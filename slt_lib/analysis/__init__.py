"""Analyses of trained models. They take models, weights and sentences, not runs."""
