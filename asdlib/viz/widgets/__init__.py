"""Interactive widgets for JupyterLab, each with a static HTML version for reports (METHOD 8.5)."""
