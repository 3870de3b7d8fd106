/*
 * outside.c - what the helpers share that work on a sandbox from outside of it (inodes.c, mounts.c).
 *
 * Power over a sandbox's mounts has who has power over the user namespace that they were made in:
 * bubblewrap's own, above the one that programs (and init) live in, so nobody inside. Its owner
 * outside has: a process of the uid that made it (user_namespaces(7)).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/nsfs.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "init.h"

int failed(const char *what)
{
	fprintf(stderr, "retort-init: %s: %s\n", what, strerror(errno));
	return 1;
}

bool parse_number(const char *text, long most, long *number)
{
	char *end = NULL;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*number = strtol(text, &end, 10);
	return !errno && !*end && *number <= most;
}

bool parse_visit(char **arguments, struct visit *visit)
{
	long pid, pidfd, uid;

	if (!parse_number(arguments[0], INT_MAX, &pid) ||
	    !parse_number(arguments[1], INT_MAX, &pidfd) ||
	    !parse_number(arguments[2], UINT_MAX - 1L, &uid))
		return false;
	*visit = (struct visit){ .pid = (pid_t)pid, .pidfd = (int)pidfd, .uid = (uid_t)uid };
	return true;
}

static bool has_ended(int pidfd)
{
	struct pollfd polled = { .fd = pidfd, .events = POLLIN };

	return poll(&polled, 1, 0) != 0;
}

bool become(uid_t uid)
{
	if (geteuid() == uid)
		return true;
	return setgroups(0, NULL) == 0 && setresgid(uid, uid, uid) == 0 &&
	       setresuid(uid, uid, uid) == 0;
}

/*
 * Like setpriv(1), but static: without a dynamic linker this takes half as long, and every sandbox
 * of a server that is root waits for it.
 */
int run_as(int count, char **arguments)
{
	long uid;

	if (count < 2 || !parse_number(arguments[0], UINT_MAX - 1L, &uid) || uid == 0) {
		errno = EINVAL;
		return failed("--as");
	}
	if (!become((uid_t)uid))
		return failed("uid");
	if (chdir("/") < 0)
		return failed("/");
	execv(arguments[1], arguments + 1);
	return failed(arguments[1]);
}

/* Become a process of the sandbox's mount namespace, with every capability over it. */
bool enter_sandbox(const struct visit *visit)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/ns/mnt", (int)visit->pid);
	autoclose int mounts = open(path, O_RDONLY | O_CLOEXEC);
	if (mounts < 0)
		return false;
	/* A pid that still belongs to its process now belonged to it when it was opened. */
	if (has_ended(visit->pidfd)) {
		errno = ESRCH;
		return false;
	}
	autoclose int owner = ioctl(mounts, NS_GET_USERNS);
	return owner >= 0 && setns(owner, CLONE_NEWUSER) == 0 && setns(mounts, CLONE_NEWNS) == 0;
}
