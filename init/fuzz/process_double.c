/*
 * process_double.c - process.c and proc.c without processes: children are rows of a table.
 *
 * They obey what init relies on: a pid is not given again while it is in use, SIGKILL makes a zombie,
 * a zombie is reaped once, and "no child" is told apart from "none ready".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../init.h"
#include "double.h"

#define CHILDREN_MAX 64

struct child {
	pid_t pid;
	bool is_zombie;
	int status;
	int sock;	/* the child's end of the socketpair */
};

static struct child children[CHILDREN_MAX];
static pid_t next_pid;
static int last_child_end = -1;

/* ld --wrap: standby_make's socketpair is the only one; the child's end would be closed by init. */
int __real_socketpair(int domain, int type, int protocol, int ends[2]);
int __wrap_socketpair(int domain, int type, int protocol, int ends[2]);
int __wrap_socketpair(int domain, int type, int protocol, int ends[2])
{
	int result = __real_socketpair(domain, type, protocol, ends);
	if (last_child_end >= 0)
		close(last_child_end);
	last_child_end = result == 0 ? fcntl(ends[1], F_DUPFD_CLOEXEC, 3) : -1;
	return result;
}

static struct child *find(pid_t pid)
{
	for (int i = 0; i < CHILDREN_MAX; i++)
		if (children[i].pid == pid)
			return &children[i];
	return NULL;
}

void double_reset(void)
{
	for (int i = 0; i < CHILDREN_MAX; i++)
		if (children[i].pid)
			close_descriptor(&children[i].sock);
	memset(children, 0, sizeof(children));
	close_descriptor(&last_child_end);
	next_pid = 1000;
}

bool double_is_alive(pid_t pid)
{
	const struct child *child = pid > 0 ? find(pid) : NULL;
	return child && !child->is_zombie;
}

void double_exec(pid_t pid)
{
	struct child *child = pid > 0 ? find(pid) : NULL;
	if (child)
		close_descriptor(&child->sock);
}

void double_exit(pid_t pid, int status)
{
	struct child *child = pid > 0 ? find(pid) : NULL;
	if (!child || child->is_zombie)
		return;
	close_descriptor(&child->sock);
	child->is_zombie = true;
	child->status = status;
}

pid_t process_spawn(int cgroup, int *pidfd)
{
	struct child *child = find(0);

	/* A descriptor that is no cgroup is refused by the host kernel; some are let through here. */
	if (cgroup >= 0 && next_pid % 2) {
		next_pid++;
		errno = EBADF;
		return -1;
	}
	if (!child) {
		errno = EAGAIN;
		return -1;
	}
	child->pid = next_pid++;
	child->sock = last_child_end;
	last_child_end = -1;
	*pidfd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	return child->pid;
}

pid_t process_reap(int *status, struct rusage *usage)
{
	bool is_any = false;

	memset(usage, 0, sizeof(*usage));
	for (int i = 0; i < CHILDREN_MAX; i++) {
		pid_t pid = children[i].pid;
		is_any |= pid != 0;
		if (!children[i].is_zombie)
			continue;
		*status = children[i].status;
		memset(&children[i], 0, sizeof(children[i]));
		return pid;
	}
	errno = ECHILD;
	return is_any ? 0 : -1;
}

void process_await_memory(void)
{
}

int process_signal(pid_t pid, int number)
{
	struct child *child = find(pid < 0 ? -pid : pid);

	/* init may only ever signal children that it has not reaped. */
	if (pid == 0 || pid == -1 || !child)
		abort();
	if (number == SIGKILL)
		double_exit(child->pid, SIGKILL);
	return 0;
}

int process_signal_all(const struct init *in, int number)
{
	bool is_any = false;

	(void)in;
	for (int i = 0; i < CHILDREN_MAX; i++)
		if (children[i].pid && !children[i].is_zombie) {
			is_any = true;
			if (number == SIGKILL)
				double_exit(children[i].pid, SIGKILL);
		}
	errno = ESRCH;
	return is_any ? 0 : -1;
}

int process_signal_session(pid_t session)
{
	int alive = double_is_alive(session);
	if (alive)
		double_exit(session, SIGKILL);
	return alive;
}

/* The real one would remove the developer's own. */
void ipc_remove_all(void)
{
}

void handle_waiting(struct init *in, const struct retort_waiting *msg)
{
	struct retort_input reply = { .header = { RETORT_INPUT, msg->header.id } };

	if (step_find(in, msg->number))
		answer(in, &reply, sizeof(reply), NULL, 0);
	else
		answer_failed(in, msg->header.id, RETORT_PHASE_STEP, ENOENT);
}
