"""Which plugins exist and what they offer. Reading names imports no plugin, no torch and no pydantic."""
