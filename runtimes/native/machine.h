/* The machine's state, by the names of the measurement's conditions. What the kernel does not tell is null. */
#ifndef PHI_EDGE_MACHINE_H
#define PHI_EDGE_MACHINE_H

#include <stdbool.h>
#include <stdio.h>

/* Seconds of the monotonic clock. */
double machine_clock(void);
/* Seconds since the kernel started this process; -1 where it does not tell. */
double machine_process_age(void);
/* How many cores this process may use. */
int machine_cores(void);
/* The kernel's boot id; false where there is none. */
bool machine_boot_id(char *text, size_t size);
/* One JSON object. */
void machine_write_conditions(FILE *out);

#endif
