"""The task frameworks that are compared: one small module each, one way to measure them all."""
