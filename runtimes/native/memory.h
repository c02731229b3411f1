/* Memory of this process. The peak by runtimes/system/memory.py's definition: max(VmHWM, max over samples of VmRSS + VmSwap). */
#ifndef PHI_EDGE_MEMORY_H
#define PHI_EDGE_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

struct memory_sample {
    bool known; /* false where the kernel does not tell */
    uint64_t high_water_bytes, resident_bytes, anonymous_bytes, file_bytes, swap_bytes;
};

struct memory_use {
    bool known;
    uint64_t peak_bytes, anonymous_bytes, file_bytes, swap_bytes; /* the split is that of the largest sample */
};

/* Sample every 10 ms from a thread, from now to the end of the process. */
void memory_start(void);
/* This moment, from /proc/self/status. It counts into the peak. */
struct memory_sample memory_now(void);
/* The peak so far, this moment included. */
struct memory_use memory_peak(void);

#endif
