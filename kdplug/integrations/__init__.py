"""Integrations: objectives in the transformers ``Trainer`` and in Lightning, and a drop-in for TextBrewer.

``transformers`` and ``lightning`` need the library of that name; ``textbrewer`` needs none.
"""
