"""Devices, files and processes around a model; nothing here knows which model it is."""
