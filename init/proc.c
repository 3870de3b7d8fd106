/*
 * proc.c - what /proc tells about other processes: who descends from whom, and who sleeps in a
 * read of a step's stdin.
 *
 * Everything here may be stale when it is used and is only ever used where that is harmless: a
 * missed process is found by the next pass, a wrong WAITING is asked again by the server.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "init.h"

#define autoclosedir __attribute__((cleanup(close_folder)))

static void close_folder(DIR **folder)
{
	if (*folder)
		closedir(*folder);
}

/* The next entry that is a number (a pid, a tid, a descriptor), or 0 at the end. */
static int next_number(DIR *folder)
{
	struct dirent *entry;

	while ((entry = readdir(folder)))
		if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9')
			return atoi(entry->d_name);
	return 0;
}

/* Reads the beginning of a small file, ended by a NUL. Returns its length, or -1. */
static ssize_t read_small(const char *path, char *text, size_t size)
{
	autoclose int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	ssize_t length = fd < 0 ? -1 : read(fd, text, size - 1);
	text[length < 0 ? 0 : length] = 0;
	return length;
}

static bool read_stat(pid_t pid, struct process *process)
{
	char path[64], text[512];

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (read_small(path, text, sizeof(text)) <= 0)
		return false;
	/* "pid (comm) state ppid pgrp session": comm is a program's choice, hence the last ')'. */
	const char *after = strrchr(text, ')');
	process->pid = pid;
	return after && sscanf(after, ") %c %d %*d %d", &process->state, &process->parent,
			       &process->session) == 3;
}

size_t proc_list(struct process *list, size_t capacity)
{
	autoclosedir DIR *folder = opendir("/proc");
	size_t count = 0;

	for (pid_t pid; folder && count < capacity && (pid = next_number(folder)) > 0;)
		if (read_stat(pid, &list[count]))
			count++;
	return count;
}

/* The descriptor that a task sleeps reading from, or -1: /proc/PID/task/TID/syscall is the number
 * and the arguments of the call it is blocked in, or "running" (proc(5)). Unreadable for programs
 * that made themselves undumpable: they count as not waiting. */
static int blocked_read(pid_t pid, pid_t task)
{
	char path[64], text[128];
	int number;
	unsigned fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", pid, task);
	if (read_small(path, text, sizeof(text)) <= 0 || sscanf(text, "%d 0x%x", &number, &fd) != 2)
		return -1;
	return number == SYS_read || number == SYS_readv ? (int)fd : -1;
}

static bool is_stdin_of(const struct step *step, pid_t pid, int fd)
{
	char path[64];
	struct stat found;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
	return stat(path, &found) == 0 && found.st_dev == step->stdin_device &&
	       found.st_ino == step->stdin_inode;
}

static bool process_waits(const struct step *step, pid_t pid, int *budget)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	autoclosedir DIR *tasks = opendir(path);
	for (pid_t task; tasks && *budget > 0 && (task = next_number(tasks)) > 0; --*budget) {
		int fd = blocked_read(pid, task);
		if (fd >= 0 && is_stdin_of(step, pid, fd))
			return true;
	}
	return false;
}

static bool somebody_waits(const struct step *step)
{
	int budget = PROC_TASKS_MAX;

	/* Most often it is the main process itself, so ask it before all others. */
	if (process_waits(step, step->pid, &budget))
		return true;
	autoclosedir DIR *folder = opendir("/proc");
	for (pid_t pid; folder && budget > 0 && (pid = next_number(folder)) > 0;)
		if (pid != step->pid && pid != getpid() && process_waits(step, pid, &budget))
			return true;
	return false;
}

void handle_waiting(struct init *in, const struct retort_waiting *msg)
{
	const struct step *step = step_find(in, msg->number);
	struct retort_input reply = { .header = { RETORT_INPUT, msg->header.id } };

	if (!step) {
		answer_failed(in, msg->header.id, RETORT_PHASE_STEP, ENOENT);
		return;
	}
	reply.waiting = step->state == RETORT_STATE_RUNNING && somebody_waits(step);
	answer(in, &reply, sizeof(reply), NULL, 0);
}
