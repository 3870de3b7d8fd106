#include <math.h>
#include <stdio.h>
#include <string.h>

#include "plot.h"

static int column_of(const struct canvas *canvas, double x)
{
	return (int)lround((x - canvas->x_min) / (canvas->x_max - canvas->x_min) * (COLUMNS - 1));
}

static int row_of(const struct canvas *canvas, double y)
{
	return (int)lround((canvas->y_max - y) / (canvas->y_max - canvas->y_min) * (ROWS - 1));
}

void canvas_clear(struct canvas *canvas, double x_min, double x_max, double y_min, double y_max)
{
	int axis_row, axis_column, i;

	*canvas = (struct canvas){ x_min, x_max, y_min, y_max, { { 0 } } };
	memset(canvas->cells, ' ', sizeof(canvas->cells));
	axis_row = row_of(canvas, 0);
	axis_column = column_of(canvas, 0);
	for (i = 0; i < COLUMNS; i++)
		canvas->cells[axis_row][i] = '-';
	for (i = 0; i < ROWS; i++)
		canvas->cells[i][axis_column] = '|';
}

void canvas_draw(struct canvas *canvas, const struct curve *curve)
{
	double step = (canvas->x_max - canvas->x_min) / (COLUMNS - 1);
	int column;

	for (column = 0; column < COLUMNS; column++) {
		double y = expr_eval(curve->tree, canvas->x_min + column * step);

		if (isfinite(y) && y >= canvas->y_min && y <= canvas->y_max)
			canvas->cells[row_of(canvas, y)][column] = curve->mark;
	}
}

void canvas_print(const struct canvas *canvas)
{
	int row;

	for (row = 0; row < ROWS; row++)
		printf("%.*s\n", COLUMNS, canvas->cells[row]);
}
