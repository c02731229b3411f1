/* Peak memory of this process, as runtimes/system/memory.py defines it: max(VmHWM, max over samples of VmRSS + VmSwap). */
#ifndef PHI_EDGE_MEMORY_H
#define PHI_EDGE_MEMORY_H

#include "yyjson/yyjson.h"

/* Sample every 10 ms from a thread, from now to the end of the process. */
void memory_start(void);
/* Add the peak so far, this moment included, to a line's object as "memory": null where the kernel does not report it.
   The split is that of the largest sample. */
void memory_add(yyjson_mut_doc *doc, yyjson_mut_val *object);

#endif
