"""The models of the interactive views: traitlets, no widgets."""
