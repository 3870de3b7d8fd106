#include <stdio.h>
#include <string.h>

#include "curves.h"

static int parse_line(struct curve *curve, const char *path, int number, const char *line)
{
	char error[64];

	if (sscanf(line, " %c %79[^\n]", &curve->mark, curve->text) != 2) {
		fprintf(stderr, "%s:%d: not a mark and an expression\n", path, number);
		return -1;
	}
	curve->tree = expr_parse(curve->text, error, sizeof(error));
	if (!curve->tree) {
		fprintf(stderr, "%s:%d: %s: %s\n", path, number, curve->text, error);
		return -1;
	}
	return 0;
}

int curves_read(const char *path, struct curve curves[MAX_CURVES])
{
	char line[128];
	int count = 0, number = 0;
	FILE *file = fopen(path, "r");

	if (!file) {
		perror(path);
		return -1;
	}
	while (count >= 0 && count < MAX_CURVES && fgets(line, sizeof(line), file)) {
		number++;
		if (line[0] == '#' || line[strspn(line, " \n")] == '\0')
			continue;
		count = parse_line(&curves[count], path, number, line) ? -1 : count + 1;
	}
	fclose(file);
	return count;
}
