/* util.c - descriptors and the parsing of datagrams. No state. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/close_range.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "init.h"

void close_descriptor(int *fd)
{
	if (*fd < 0)
		return;
	/* Runs between a failure and the report of its errno. */
	int saved = errno;
	close(*fd);
	*fd = -1;
	errno = saved;
}

void free_pointer(void *pointer)
{
	free(*(void **)pointer);
}

void close_all_from(int first)
{
	if (syscall(SYS_close_range, first, ~0U, 0) == 0)
		return;
	/* Before Linux 5.9. No step has run yet that could have put descriptors high up. */
	struct rlimit limit = { .rlim_cur = 1024 };
	getrlimit(RLIMIT_NOFILE, &limit);
	for (int fd = first; fd < 65536 && (rlim_t)fd < limit.rlim_cur; fd++)
		close(fd);
}

uint64_t monotonic_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void close_descriptors(struct descriptors *all)
{
	for (int i = 0; i < all->count; i++)
		close_descriptor(&all->fd[i]);
	all->count = 0;
}

/* From then on the caller's to close. */
int take_descriptor(struct descriptors *all, int index)
{
	if (index >= all->count)
		return -1;
	int fd = all->fd[index];
	all->fd[index] = -1;
	return fd;
}

const void *take_bytes(struct cursor *from, size_t length)
{
	if (from->failed || length > from->left) {
		from->failed = true;
		return NULL;
	}
	const char *bytes = from->at;
	from->at += length;
	from->left -= length;
	return bytes;
}

const char *take_string(struct cursor *from)
{
	const char *end = from->failed ? NULL : memchr(from->at, 0, from->left);
	if (!end) {
		from->failed = true;
		return NULL;
	}
	return take_bytes(from, (size_t)(end - from->at) + 1);
}

bool is_consumed(const struct cursor *from)
{
	return !from->failed && from->left == 0;
}

/* Every count is bounded before it is multiplied or added to another. */
static bool is_exec_head_sane(const struct retort_exec *head)
{
	const uint32_t flags = RETORT_EXEC_KEEP_BACKGROUND | RETORT_EXEC_TTY;
	return head->number != 0 && !(head->flags & ~flags) && head->standby >= 0 &&
	       head->limit_count <= RETORT_LIMITS_MAX && head->tag_length <= RETORT_TAG_MAX &&
	       head->argument_count >= 1 && head->argument_count <= RETORT_STRINGS_MAX &&
	       head->environment_count <= RETORT_STRINGS_MAX;
}

/* init parses to refuse, and the standby child parses the same bytes again to execute: one
 * parser, so that they cannot disagree. */
bool parse_exec(const void *bytes, size_t length, int descriptor_count, struct exec_request *exec)
{
	struct cursor rest = { .at = bytes, .left = length };

	exec->head = take_bytes(&rest, sizeof(*exec->head));
	if (!exec->head || !is_exec_head_sane(exec->head))
		return false;
	if (descriptor_count < 3 || descriptor_count > ALL_DESCRIPTORS_MAX)
		return false;
	exec->limits = take_bytes(&rest, exec->head->limit_count * sizeof(struct retort_limit));
	exec->tag = take_bytes(&rest, exec->head->tag_length);
	exec->cwd = take_string(&rest);
	exec->arguments = rest;
	for (uint32_t i = 0; i < exec->head->argument_count + exec->head->environment_count; i++)
		take_string(&rest);
	return is_consumed(&rest);
}
