"""Text to validated data: what a run is to do, before any of it is built. Nothing here touches a tensor."""
