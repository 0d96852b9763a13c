"""The views: ipywidgets, inline SVG, one anywidget canvas; static twins for reports."""
