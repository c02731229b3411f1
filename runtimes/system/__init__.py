"""What the operating system says of this process and machine: memory, cores, page cache, conditions."""
