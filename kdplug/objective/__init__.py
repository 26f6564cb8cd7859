"""Config and registries to one module that turns student and teacher outputs into a loss."""
