/* What the kernel reports about this process and this machine. */
#ifndef PHI_EDGE_MACHINE_H
#define PHI_EDGE_MACHINE_H

#include <stdbool.h>
#include <stddef.h>

/* Seconds of the monotonic clock. */
double machine_clock(void);
/* Seconds since the kernel started this process; -1: unknown. */
double machine_process_age(void);
/* How many cores this process may use. */
int machine_cores(void);
/* The kernel's boot id; false where there is none. */
bool machine_boot_id(char *text, size_t size);

#endif
