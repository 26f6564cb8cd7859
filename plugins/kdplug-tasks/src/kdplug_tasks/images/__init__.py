"""Turn images into model inputs."""
