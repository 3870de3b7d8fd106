/*
 * files.c - what the server does to the session's files.
 *
 * The server never resolves a path of a tree that a program can write; it asks here, and gets a
 * descriptor or a result. Everything that changes the tree opens the parent folder by the rules
 * of beneath.c and then acts on one name in it, so that no later swap of a folder matters.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "init.h"

#define OPEN_FLAGS (O_ACCMODE | O_CREAT | O_EXCL | O_TRUNC | O_APPEND | O_DIRECTORY | O_NOFOLLOW | \
		    O_TMPFILE | O_PATH | O_NOATIME | O_SYNC | O_DIRECT | O_LARGEFILE | O_CLOEXEC | \
		    O_NOCTTY | O_NONBLOCK)
#define RENAME_FLAGS 3U		/* RENAME_NOREPLACE | RENAME_EXCHANGE; not every stdio.h has them */
#define MODE_BITS 07777U

bool files_start(struct init *in, const char *home)
{
	struct open_how how = { .flags = O_PATH | O_DIRECTORY | O_CLOEXEC };

	/* The server's modes are exact; programs get the usual umask back. */
	umask(0);
	if (in->has_openat2) {
		in->home = (int)syscall(SYS_openat2, AT_FDCWD, home, &how, sizeof(how));
		in->has_openat2 = in->home >= 0 || errno != ENOSYS;
	}
	if (!in->has_openat2)
		in->home = open(home, O_PATH | O_DIRECTORY | O_CLOEXEC);
	return in->home >= 0;
}

/* Ends the request: done with a count, or with errno's failure. */
static void conclude(struct init *in, uint32_t id, uint32_t phase, bool ok)
{
	if (ok)
		answer_done(in, id, 0);
	else
		answer_failed(in, id, phase, errno);
}

/* Takes the last string of a request. Answers for itself and returns NULL if there is more or less,
 * or if the caller found the fields insane. */
static const char *last_path(struct init *in, uint32_t id, struct cursor *rest, bool is_sane)
{
	const char *path = take_string(rest);

	if (is_sane && is_consumed(rest))
		return path;
	answer_failed(in, id, RETORT_PHASE_PROTOCOL, EINVAL);
	return NULL;
}

void handle_open(struct init *in, const struct retort_open *msg, struct cursor *rest)
{
	struct retort_opened reply = { .header = { RETORT_OPENED, msg->header.id } };
	/* Only flags whose effect is known: O_ASYNC, say, would let a program signal init. */
	bool is_sane = are_rules(msg->resolve) && !(msg->flags & ~(uint32_t)OPEN_FLAGS) &&
		       !(msg->mode & ~MODE_BITS);
	const char *path = last_path(in, msg->header.id, rest, is_sane);

	if (!path)
		return;
	autoclose int fd = open_beneath(in, in->home, path, (int)msg->flags, msg->mode,
					msg->resolve);
	if (fd < 0)
		answer_failed(in, msg->header.id, RETORT_PHASE_OPEN, errno);
	else
		answer(in, &reply, sizeof(reply), &fd, 1);
}

/* ---- MKDIRS ---- */

/* Makes one folder, or takes the one that is there, and opens it. */
static int make_folder(const struct init *in, int dir, const char *name,
		       const struct retort_mkdirs *msg, uint32_t *made)
{
	/* Made first and looked at after: the other way round a program could slip in between. What
	 * is there already, whatever it is, must then open as a folder and not through a link. */
	if (mkdirat(dir, name, msg->mode) == 0)
		++*made;
	else if (errno != EEXIST)
		return -1;
	return open_beneath(in, dir, name, O_PATH | O_DIRECTORY | O_NOFOLLOW, 0,
			    msg->resolve | RESOLVE_NO_SYMLINKS);
}

/* Removes the deepest `made` folders of a path again, as far as they are empty and still there. */
static void unmake_folders(const struct init *in, char *path, uint32_t made, uint64_t resolve)
{
	/* By path again, not by kept descriptors: there may be hundreds. A program that swapped a
	 * folder meanwhile loses an empty one of its own. */
	for (; made > 0; made--) {
		const char *name;
		autoclose int parent = open_parent(in, path, resolve, &name);
		if (parent < 0 || unlinkat(parent, name, AT_REMOVEDIR) < 0)
			return;
		char *slash = strrchr(path, '/');
		if (slash)
			*slash = 0;
	}
}

/* Copies a path without empty and "." components. Returns how many remain, or -1: too long. */
static int normalise(const char *path, char clean[RETORT_PATH_MAX])
{
	size_t used = 0;
	int depth = 0;

	if (strlen(path) >= RETORT_PATH_MAX)
		return -1;
	for (const char *at = path; *at; at += strspn(at, "/")) {
		size_t length = strcspn(at, "/");
		if (length && !(length == 1 && *at == '.')) {
			if (depth++)
				clean[used++] = '/';
			memcpy(clean + used, at, length);
			used += length;
		}
		at += length;
	}
	clean[used] = 0;
	return depth > RETORT_DEPTH_MAX ? -1 : depth;
}

/* Walks a clean path, making what is missing. 0 or errno; then path is cut behind the folder that
 * failed, or before it if it was not made. */
static int make_folders(const struct init *in, char *path, const struct retort_mkdirs *msg,
			uint32_t *made)
{
	/* One component at a time, each by the rules, so that NO_XDEV and the links of every level
	 * are judged before anything is made below it. */
	autoclose int dir = fcntl(in->home, F_DUPFD_CLOEXEC, 3);

	for (char *name = path; dir >= 0;) {
		char *end = strchrnul(name, '/');
		bool is_last = !*end;
		uint32_t before = *made;
		*end = 0;
		int next = make_folder(in, dir, name, msg, made);
		if (next < 0) {
			int error = errno;
			if (*made == before)
				*(name == path ? name : name - 1) = 0;
			return error;
		}
		close_descriptor(&dir);
		if (is_last) {
			close(next);
			return 0;
		}
		*end = '/';
		dir = next;
		name = end + 1;
	}
	return errno;
}

void handle_mkdirs(struct init *in, const struct retort_mkdirs *msg, struct cursor *rest)
{
	bool is_sane = are_rules(msg->resolve) && !(msg->mode & ~MODE_BITS);
	const char *asked = last_path(in, msg->header.id, rest, is_sane);
	char path[RETORT_PATH_MAX];
	uint32_t made = 0;

	if (!asked)
		return;
	int error = !*asked ? ENOENT : *asked == '/' ? EXDEV : 0;
	int depth = error ? 0 : normalise(asked, path);
	if (depth < 0)
		error = ENAMETOOLONG;
	/* ".." anywhere is refused before anything is made. */
	for (const char *at = path; !error && depth > 0 && at; at = strchr(at, '/')) {
		at += *at == '/';
		if (!strncmp(at, "..", 2) && (!at[2] || at[2] == '/'))
			error = EXDEV;
	}
	if (!error && depth > 0)
		error = make_folders(in, path, msg, &made);
	if (!error) {
		answer_done(in, msg->header.id, made);
		return;
	}
	unmake_folders(in, path, made, msg->resolve);
	answer_failed(in, msg->header.id, RETORT_PHASE_MKDIRS, error);
}

/* ---- LINK, RENAME, UNLINK ---- */

/* Only a file that has no name yet: second names for files of somebody's choice are not offered. */
static int check_unnamed(int file)
{
	struct stat found;

	if (fstat(file, &found) < 0)
		return errno;
	return S_ISREG(found.st_mode) && found.st_nlink == 0 ? 0 : EINVAL;
}

void handle_link(struct init *in, const struct retort_link *msg, struct cursor *rest, int file)
{
	const char *path = last_path(in, msg->header.id, rest, are_rules(msg->resolve));
	const char *name;
	char source[32];

	if (!path)
		return;
	int error = check_unnamed(file);
	if (error) {
		answer_failed(in, msg->header.id, RETORT_PHASE_LINK, error);
		return;
	}
	autoclose int parent = open_parent(in, path, msg->resolve, &name);
	/* AT_EMPTY_PATH needs a capability before Linux 6.10; our own /proc/self/fd does not. */
	snprintf(source, sizeof(source), "/proc/self/fd/%d", file);
	conclude(in, msg->header.id, RETORT_PHASE_LINK,
		 parent >= 0 && linkat(AT_FDCWD, source, parent, name, AT_SYMLINK_FOLLOW) == 0);
}

void handle_rename(struct init *in, const struct retort_rename *msg, struct cursor *rest)
{
	const char *from = take_string(rest);
	bool is_sane = are_rules(msg->resolve) && !(msg->flags & ~RENAME_FLAGS);
	const char *to = last_path(in, msg->header.id, rest, is_sane);
	const char *old_name, *new_name;

	if (!to)
		return;
	autoclose int old_parent = open_parent(in, from, msg->resolve, &old_name);
	autoclose int new_parent = -1;
	if (old_parent >= 0)
		new_parent = open_parent(in, to, msg->resolve, &new_name);
	conclude(in, msg->header.id, RETORT_PHASE_RENAME,
		 new_parent >= 0 && syscall(SYS_renameat2, old_parent, old_name, new_parent,
					    new_name, msg->flags) == 0);
}

void handle_unlink(struct init *in, const struct retort_unlink *msg, struct cursor *rest)
{
	bool is_sane = are_rules(msg->resolve) && !(msg->flags & ~(uint32_t)AT_REMOVEDIR);
	const char *path = last_path(in, msg->header.id, rest, is_sane);
	const char *name;

	if (!path)
		return;
	autoclose int parent = open_parent(in, path, msg->resolve, &name);
	conclude(in, msg->header.id, RETORT_PHASE_UNLINK,
		 parent >= 0 && unlinkat(parent, name, (int)msg->flags) == 0);
}
