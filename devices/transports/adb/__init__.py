"""An Android phone over the adb client. Start at host.py."""
