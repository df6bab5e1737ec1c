"""Evaluation: scores per language and composition, as a table, a picture and a page."""
