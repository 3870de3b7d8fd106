/*
 * inodes.c - caps the number of files on a new sandbox's file systems, from outside of it.
 *
 *	retort-init --cap-inodes PID PIDFD UID PLACE COUNT [PLACE COUNT]...
 *
 * bubblewrap can give a tmpfs a size, but no number of files. Who may change that later is who has
 * power over the user namespace that it was mounted in: bubblewrap's own, above the one that
 * programs (and init) live in, so nobody inside. Its owner outside has: a process of the uid that
 * made it (user_namespaces(7)). So the server runs this program once for each sandbox, as that uid
 * and before the sandbox's first program: it enters both namespaces, sets the numbers, and ends.
 * No process of the sandbox ever has a capability, and none can see this one: it stays in the
 * host's pid namespace.
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
#include <sys/mount.h>
#include <unistd.h>

#include "init.h"

static int failed(const char *what)
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

bool parse_inode_caps(int count, char **arguments, struct inode_caps *caps)
{
	long pid, pidfd, uid, number;

	if (count < 5 || count % 2 == 0 || !parse_number(arguments[0], INT_MAX, &pid) ||
	    !parse_number(arguments[1], INT_MAX, &pidfd) ||
	    !parse_number(arguments[2], UINT_MAX - 1L, &uid))
		return false;
	for (int i = 3; i < count; i += 2)
		if (arguments[i][0] != '/' || !parse_number(arguments[i + 1], LONG_MAX, &number) ||
		    number == 0)	/* to a tmpfs, 0 means without end */
			return false;
	*caps = (struct inode_caps){ .pid = (pid_t)pid, .pidfd = (int)pidfd, .uid = (uid_t)uid,
				     .places = arguments + 3, .count = count - 3 };
	return true;
}

static bool has_ended(int pidfd)
{
	struct pollfd polled = { .fd = pidfd, .events = POLLIN };

	return poll(&polled, 1, 0) != 0;
}

static bool become(uid_t uid)
{
	if (geteuid() == uid)
		return true;
	return setgroups(0, NULL) == 0 && setresgid(uid, uid, uid) == 0 &&
	       setresuid(uid, uid, uid) == 0;
}

/* Become a process of the sandbox's mount namespace, with every capability over it. */
static bool enter(const struct inode_caps *caps)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/ns/mnt", (int)caps->pid);
	autoclose int mounts = open(path, O_RDONLY | O_CLOEXEC);
	if (mounts < 0)
		return false;
	/* A pid that still belongs to its process now belonged to it when it was opened. */
	if (has_ended(caps->pidfd)) {
		errno = ESRCH;
		return false;
	}
	autoclose int owner = ioctl(mounts, NS_GET_USERNS);
	return owner >= 0 && setns(owner, CLONE_NEWUSER) == 0 && setns(mounts, CLONE_NEWNS) == 0;
}

int cap_inodes(int count, char **arguments)
{
	struct inode_caps caps;
	char options[64];

	if (!parse_inode_caps(count, arguments, &caps)) {
		errno = EINVAL;
		return failed("--cap-inodes");
	}
	if (!become(caps.uid))
		return failed("uid");
	if (!enter(&caps))
		return failed("namespaces of the sandbox");
	for (int i = 0; i < caps.count; i += 2) {
		snprintf(options, sizeof(options), "nr_inodes=%s", caps.places[i + 1]);
		if (mount(NULL, caps.places[i], NULL, MS_REMOUNT | MS_NOSUID | MS_NODEV, options) < 0)
			return failed(caps.places[i]);
	}
	return 0;
}
