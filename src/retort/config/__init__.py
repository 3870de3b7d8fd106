"""The settings: what can be set (`sections`), and how it is read (`reading`)."""

from retort.config.reading import load
from retort.config.sections import Config, ConfigError, Sandbox, default_folder

__all__ = ["Config", "ConfigError", "Sandbox", "default_folder", "load"]
