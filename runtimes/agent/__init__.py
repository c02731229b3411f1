"""The process on a device that holds a loaded artifact and speaks JSON lines; `python -m runtimes.agent`."""
