/*
 * score.c - whom the host kernel takes first when memory is short: a program, not init.
 *
 * It takes the process with the most pages, and init lives in its session's group. What programs
 * hold in files of memory, pipes and sockets is no process's page, so the smallest of them could
 * fill the group and have init taken for it: the session would be lost. So every child is born with
 * a worse score. A child is undumpable until its execve and may not write its own file, so init
 * takes the score for the time of the fork.
 *
 * A program may give itself init's score back; the session that it puts at risk is its own.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "init.h"

/* Thousandths of the group's memory (of the host's, when that is short). init has 1 MiB. */
#define WORSE_BY 200
#define WORST 1000

int score_open(void)
{
	return open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
}

void score_init(struct score *score, int fd)
{
	char text[16] = { 0 };

	*score = (struct score){ .fd = -1 };
	if (fd < 0 || pread(fd, text, sizeof(text) - 1, 0) <= 0)
		return;
	const int own = atoi(text);
	const int children = own + WORSE_BY < WORST ? own + WORSE_BY : WORST;
	snprintf(score->own, sizeof(score->own), "%d", own);
	snprintf(score->of_children, sizeof(score->of_children), "%d", children);
	score->fd = fd;
}

static void set(const struct score *score, const char *text)
{
	/* Without it, all is as on a host that has no such file: the largest process goes. */
	if (score->fd >= 0 && pwrite(score->fd, text, strlen(text), 0) < 0)
		return;
}

void score_for_child(const struct score *score)
{
	set(score, score->of_children);
}

void score_for_init(const struct score *score)
{
	set(score, score->own);
}
