"""An objective in other people's loops, and kdplug under another library's name.

``transformers`` and ``lightning`` need the library that they are named for; ``textbrewer`` needs none.
"""
