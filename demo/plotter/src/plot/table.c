#include <stdio.h>

#include "plot.h"

#define STEPS 200

int table_write(const char *path, const struct curve *curves, int count, double from, double to)
{
	FILE *file = fopen(path, "w");
	int step, i;

	if (!file) {
		perror(path);
		return -1;
	}
	fputs("x", file);
	for (i = 0; i < count; i++)
		fprintf(file, ",\"%s\"", curves[i].text);
	for (step = 0; step <= STEPS; step++) {
		double x = from + (to - from) * step / STEPS;

		fprintf(file, "\n%.4f", x);
		for (i = 0; i < count; i++)
			fprintf(file, ",%.6f", expr_eval(curves[i].tree, x));
	}
	fputs("\n", file);
	return fclose(file) == 0 ? STEPS + 1 : -1;
}
