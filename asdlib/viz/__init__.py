"""Figures, tables, players and widgets."""
