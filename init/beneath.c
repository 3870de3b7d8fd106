/*
 * beneath.c - opening paths that cannot leave a folder, whatever the programs of the sandbox do
 * to the tree at the same moment.
 *
 * openat2(2) makes the kernel itself refuse. Where it is missing (gVisor, old kernels) a walk
 * opens one component after the other and follows no symlink at all; it is stricter, never laxer.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "init.h"

#define RACES_MAX 64	/* tries of a resolution that a concurrent rename made unsafe */

bool are_rules(uint64_t resolve)
{
	return !(resolve & ~(uint64_t)(RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS |
				       RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV));
}

static bool is_changing(int flags)
{
	return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)) ||
	       (flags & O_TMPFILE) == O_TMPFILE;
}

static size_t component_length(const char *path)
{
	return strcspn(path, "/");
}

/*
 * 0, or the errno that both ways of opening shall answer. ".." is refused even where it would stay
 * inside: nobody needs it, and it is what makes a resolution racy.
 */
static int check_path(const char *path)
{
	if (!*path)
		return ENOENT;
	if (*path == '/')
		return EXDEV;
	if (strlen(path) >= RETORT_PATH_MAX)
		return ENAMETOOLONG;
	for (const char *at = path; *at; at += strspn(at, "/")) {
		size_t length = component_length(at);
		if (length == 2 && at[0] == '.' && at[1] == '.')
			return EXDEV;
		at += length;
	}
	return 0;
}

/* ---- with openat2 ---- */

static int open_kernel(int root, const char *path, int flags, mode_t mode, uint64_t resolve)
{
	struct open_how how = {
		.flags = (uint64_t)flags,
		.mode = mode,
		.resolve = resolve | RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
	};
	int fd = -1;

	/* EAGAIN: a symlink's ".." met a rename; the kernel could not tell and did not guess. */
	for (int i = 0; i < RACES_MAX; i++) {
		fd = (int)syscall(SYS_openat2, root, path, &how, sizeof(how));
		if (fd >= 0 || errno != EAGAIN)
			break;
	}
	return fd;
}

/* ---- without ---- */

/* The mount is compared as well as the device: a bind mount of the same file system is another
 * mount too. Kernels that do not know mount numbers answer 0 for all. */
static bool is_same_mount(int root, int dir, const char *name)
{
	struct statx of_root, of_name;
	const int flags = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT;

	if (statx(root, "", flags, STATX_MNT_ID, &of_root) < 0)
		return false;
	/* What does not exist yet is made in the folder, whose mount was looked at before. */
	if (statx(dir, name, flags, STATX_MNT_ID, &of_name) < 0)
		return errno == ENOENT;
	return of_root.stx_mnt_id == of_name.stx_mnt_id &&
	       of_root.stx_dev_major == of_name.stx_dev_major &&
	       of_root.stx_dev_minor == of_name.stx_dev_minor;
}

static int open_component(int dir, const char *name, int flags, mode_t mode)
{
	autoclose int fd = openat(dir, name, flags | O_NOFOLLOW, mode);
	struct stat found;

	/* O_PATH|O_NOFOLLOW opens a symlink itself, which only who says O_NOFOLLOW wants. */
	if (fd >= 0 && (flags & O_PATH) && !(flags & O_NOFOLLOW) && fstat(fd, &found) == 0 &&
	    S_ISLNK(found.st_mode)) {
		errno = ELOOP;
		return -1;
	}
	int result = fd;
	fd = -1;
	return result;
}

static int open_walking(int root, const char *path, int flags, mode_t mode, uint64_t resolve)
{
	autoclose int dir = fcntl(root, F_DUPFD_CLOEXEC, 3);
	char name[256];

	for (const char *at = path; dir >= 0;) {
		size_t length = component_length(at);
		if (length >= sizeof(name)) {
			errno = ENAMETOOLONG;
			return -1;
		}
		memcpy(name, at, length);
		name[length] = 0;
		at += length;
		bool is_folder = *at == '/';
		at += strspn(at, "/");
		if ((resolve & RESOLVE_NO_XDEV) && !is_same_mount(root, dir, name)) {
			errno = EXDEV;
			return -1;
		}
		if (!*at)
			return open_component(dir, name, flags | (is_folder ? O_DIRECTORY : 0),
					      mode);
		int next = open_component(dir, name, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
		close_descriptor(&dir);
		dir = next;
	}
	return -1;
}

/* ---- both ---- */

int open_beneath(const struct init *in, int root, const char *path, int flags, mode_t mode,
		 uint64_t resolve)
{
	int error = check_path(path);

	if (error) {
		errno = error;
		return -1;
	}
	/* Never wait for a FIFO's other end or a lease, never gain a terminal. O_PATH opens
	 * nothing, and openat2 refuses other flags beside it. */
	flags |= O_CLOEXEC | (flags & O_PATH ? 0 : O_NONBLOCK | O_NOCTTY);
	/* Reading through a link that stays inside is harmless; writing would let a program choose
	 * which of its files the server overwrites. */
	if (is_changing(flags))
		resolve |= RESOLVE_NO_SYMLINKS;
	/* openat2 refuses a mode that nothing would use; callers need not know. */
	if (!(flags & O_CREAT) && (flags & O_TMPFILE) != O_TMPFILE)
		mode = 0;
	return in->has_openat2 ? open_kernel(root, path, flags, mode, resolve)
			       : open_walking(root, path, flags, mode, resolve);
}

int open_parent(const struct init *in, const char *path, uint64_t resolve, const char **name)
{
	char parent[RETORT_PATH_MAX];
	const char *slash = strrchr(path, '/');
	size_t length = slash ? (size_t)(slash - path) : 0;

	*name = slash ? slash + 1 : path;
	if (length >= sizeof(parent) || strlen(*name) > 255) {
		errno = ENAMETOOLONG;
		return -1;
	}
	if (!**name || !strcmp(*name, ".") || !strcmp(*name, "..")) {
		errno = EINVAL;
		return -1;
	}
	memcpy(parent, path, length);
	parent[length] = 0;
	/* "/name": the parent is not "" but the root folder, which is refused. */
	const char *folder = length ? parent : slash ? "/" : ".";
	return open_beneath(in, in->home, folder, O_PATH | O_DIRECTORY, 0,
			    resolve | RESOLVE_NO_SYMLINKS);
}
