"""Who uses which device: two jobs never share one. Start at lease.py; stores are sqlite.py and labgrid.py."""
