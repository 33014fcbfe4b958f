"""The settings file and the one owner of the settings: `SettingsStore`. Imports the protocol only, and no owner."""
