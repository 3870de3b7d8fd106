/* Curves as characters on a terminal, and as a table in a file. */
#ifndef PLOT_H
#define PLOT_H

#include "curves.h"

#define COLUMNS 72
#define ROWS 19

struct canvas {
	double x_min, x_max, y_min, y_max;
	char cells[ROWS][COLUMNS];
};

void canvas_clear(struct canvas *canvas, double x_min, double x_max, double y_min, double y_max);
void canvas_draw(struct canvas *canvas, const struct curve *curve);
void canvas_print(const struct canvas *canvas);

/* Gives the number of rows written, or -1 after a message on stderr. */
int table_write(const char *path, const struct curve *curves, int count, double from, double to);

#endif
