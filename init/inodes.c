/*
 * inodes.c - caps the number of files on a new sandbox's file systems, from outside of it, and shuts
 * the times of the host's device nodes.
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
 *
 * The nodes in a sandbox's /dev are the host's own, as no others can be made without root. Anybody
 * may write to most of them, and so may set their times (utimensat(2)), which every other sandbox
 * sees. On a read-only mount nobody may, and a device is still written to as before. bubblewrap's
 * --remount-ro would shut the devices themselves as well: it adds nodev.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/statvfs.h>

#include "init.h"

static const char *const DEVICES[] = {	/* those of bwrap(1), --dev */
	"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty",
};

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

/* Make one mount read-only. What else is forbidden on it stays so: the host kernel insists. */
static bool shut(const char *place)
{
	struct statvfs status;
	const unsigned long kept = ST_NOSUID | ST_NODEV | ST_NOEXEC;	/* the same bits as MS_ */

	if (statvfs(place, &status) < 0)
		return false;
	return mount(NULL, place, NULL,
		     MS_REMOUNT | MS_BIND | MS_RDONLY | (status.f_flag & kept), NULL) == 0;
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
	for (size_t i = 0; i < sizeof(DEVICES) / sizeof(DEVICES[0]); i++)
		if (!shut(DEVICES[i]))
			return failed(DEVICES[i]);
	return 0;
}
