/* Peak memory of this process, as runtimes/system/memory.py defines it: max(VmHWM, max over samples of VmRSS + VmSwap). */
#ifndef PHI_EDGE_MEMORY_H
#define PHI_EDGE_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

struct memory_use {
    bool known; /* false where the kernel does not report it */
    uint64_t peak_bytes, anonymous_bytes, file_bytes, swap_bytes; /* the split is that of the largest sample */
};

/* Sample every 10 ms from a thread, from now to the end of the process. */
void memory_start(void);
/* The peak so far, this moment included. */
struct memory_use memory_peak(void);

#endif
