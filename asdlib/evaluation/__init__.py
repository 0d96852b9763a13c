"""From score tables to numbers: ROC areas, official metrics, comparisons, detectability, challenge files."""
