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
#include <limits.h>
#include <stdio.h>
#include <sys/mount.h>

#include "init.h"

bool parse_inode_caps(int count, char **arguments, struct inode_caps *caps)
{
	struct visit visit;
	long number;

	if (count < 5 || count % 2 == 0 || !parse_visit(arguments, &visit))
		return false;
	for (int i = 3; i < count; i += 2)
		if (arguments[i][0] != '/' || !parse_number(arguments[i + 1], LONG_MAX, &number) ||
		    number == 0)	/* to a tmpfs, 0 means without end */
			return false;
	*caps = (struct inode_caps){ visit, .places = arguments + 3, .count = count - 3 };
	return true;
}

int cap_inodes(int count, char **arguments)
{
	struct inode_caps caps;
	char options[64];

	if (!parse_inode_caps(count, arguments, &caps)) {
		errno = EINVAL;
		return failed("--cap-inodes");
	}
	if (!become(caps.visit.uid))
		return failed("uid");
	if (!enter_sandbox(&caps.visit))
		return failed("namespaces of the sandbox");
	for (int i = 0; i < caps.count; i += 2) {
		snprintf(options, sizeof(options), "nr_inodes=%s", caps.places[i + 1]);
		if (mount(NULL, caps.places[i], NULL, MS_REMOUNT | MS_NOSUID | MS_NODEV, options) < 0)
			return failed(caps.places[i]);
	}
	return 0;
}
