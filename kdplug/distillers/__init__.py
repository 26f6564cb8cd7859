"""What users construct: each distiller joins a teacher, a student and a config, and trains."""
