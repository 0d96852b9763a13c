"""Evaluation of score tables: ROC areas, official metrics, comparisons, detectability, challenge files."""
