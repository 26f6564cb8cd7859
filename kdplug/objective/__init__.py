"""The distillation objective: one module that computes the loss from student and teacher outputs."""
