"""Plugin discovery and registries. Reading names imports no plugin, no torch and no pydantic."""
