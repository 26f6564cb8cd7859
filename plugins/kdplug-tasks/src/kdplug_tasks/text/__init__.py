"""Text as model inputs."""
