/* The curves that a data file names. */
#ifndef CURVES_H
#define CURVES_H

#include "expr.h"

#define MAX_CURVES 8

struct curve {
	char mark;
	char text[80];
	struct node *tree;
};

/* Gives their number, or -1 after a message on stderr. */
int curves_read(const char *path, struct curve curves[MAX_CURVES]);

#endif
