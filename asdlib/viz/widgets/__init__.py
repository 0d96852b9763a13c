"""Views of the models in `asdlib.viz.widgets`: controls and inline SVG for JupyterLab, and the same as static
HTML for reports (METHOD 8.5).
"""
