"""Objectives: what a language adapter learns from."""
