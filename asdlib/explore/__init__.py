"""Models of the interactive views: traitlets classes and arrays, no widgets, so that they are tested without a browser (METHOD 8.5)."""
