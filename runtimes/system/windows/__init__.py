"""What only Windows has: its adapters, its processes, its stdin."""
