"""What the operating system reports about this process and machine: memory, cores, page cache, conditions."""
