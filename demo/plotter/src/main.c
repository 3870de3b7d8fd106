/* Plots the curves of a data file on the terminal, and writes their values as a table. */
#include <stdio.h>
#include <sys/stat.h>

#include "curves.h"
#include "plot.h"

#define FROM (-6.5)
#define TO 6.5

int main(int argc, char **argv)
{
	const char *path = argc > 1 ? argv[1] : "data/curves.txt";
	struct curve curves[MAX_CURVES];
	struct canvas canvas;
	int count = curves_read(path, curves), rows, i;

	if (count < 0)
		return 1;
	canvas_clear(&canvas, FROM, TO, -1.1, 1.1);
	for (i = count - 1; i >= 0; i--)	/* the first one on top */
		canvas_draw(&canvas, &curves[i]);
	canvas_print(&canvas);
	for (i = 0; i < count; i++)
		printf("  %c  y = %s\n", curves[i].mark, curves[i].text);
	mkdir(".output", 0755);
	rows = table_write(".output/curves.csv", curves, count, FROM, TO);
	for (i = 0; i < count; i++)
		expr_free(curves[i].tree);
	return rows < 0;
}
