/* How probable given ids are at every position of a text, as runtimes/agent/scoring.py. */
#ifndef PHI_EDGE_SCORE_H
#define PHI_EDGE_SCORE_H

#include "generate.h"

struct scores {
    size_t positions;
    int32_t *top;     /* for each position the lowest id of those with the highest logit */
    double *logprobs; /* of the request's wanted ids, one position's after the other's */
    char error[512];  /* empty: all positions are there */
};

/* Read the request's first ids at once and the others one by one. What the session has cached is dropped. */
void score(struct model *model, const struct request *request, atomic_bool *cancelled, struct scores *scores);
void scores_free(struct scores *scores);

#endif
