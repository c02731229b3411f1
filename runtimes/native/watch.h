/* What ends the agent when its own threads cannot: a host that is silent, and one that has hung up while they wait for
 * it to read; as runtimes/agent/watch.py. */
#ifndef PHI_EDGE_WATCH_H
#define PHI_EDGE_WATCH_H

#include <stdbool.h>

/* Watch from a thread of its own. `silence_s` 0: the host may be silent. False: there is no thread for it. */
bool watch_start(double silence_s);
/* A line came in; a line was written. From any thread. */
void watch_read(void);
void watch_wrote(void);

#endif
