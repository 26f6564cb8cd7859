"""Protocols and types that plugins use and implement. No logic lives here."""
