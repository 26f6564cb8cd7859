"""Other people's loops with a kdplug objective in them. Each module needs the library that it is named for."""
