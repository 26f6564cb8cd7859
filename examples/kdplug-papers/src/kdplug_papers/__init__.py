"""Published distillation methods as entries of kdplug. Each module holds the methods of one family."""
