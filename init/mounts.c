/*
 * mounts.c - mounts folders of the host into a new sandbox, from outside of it.
 *
 *	retort-init --mount PID PIDFD UID OWNER [ACCESS SOURCE BELOW DESTINATION]...
 *
 * Run by the server once for a sandbox that has mounts, before its first program. bubblewrap 0.8
 * can bind a path only, which it resolves again as the sandbox's uid; here nothing that a user can
 * write is resolved by path:
 *
 * - SOURCE is a folder of the server's own; BELOW, "." or a folder in it, is opened beneath it with
 *   openat2(2), through no link and no other mount.
 * - open_tree(2) makes a copy of that mount which is nowhere: no name leads to it, and it is gone
 *   with its last descriptor. What is mounted further below is no part of it. Then come nosuid,
 *   nodev, and read-only if ACCESS is "ro".
 * - OWNER, if not "-", is the uid that owns the files on the disk: on this mount they appear as the
 *   sandbox's, and what the sandbox makes is OWNER's on the disk (mount_setattr(2), ID-mapped
 *   mounts). So sessions with a uid each share a folder, and own nothing in it afterwards.
 * - It is attached in the sandbox's mount namespace, and ends with that. The host's own namespace
 *   never has it: however this ends, no mount is left.
 *
 * A server that is not root may not copy a mount of the host's namespace, but anybody may of a
 * namespace of his own: a child makes one, and hands the copies over.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"

enum { ACCESS, SOURCE, BELOW, DESTINATION, WORDS };

#define MOUNTS_MAX 64
#define RACES_MAX 64
/* The C library's headers and the host kernel's clash here; these are from the latter's. */
#define TREE_CLONE 1
#define MOVE_BY_FD (0x00000004 | 0x00000040)	/* MOVE_MOUNT_F_EMPTY_PATH | T_EMPTY_PATH */
#define PROPAGATION_PRIVATE (1 << 18)		/* MS_PRIVATE */

static bool is_word(const char *text, const char *one, const char *other)
{
	return !strcmp(text, one) || !strcmp(text, other);
}

bool parse_mounts(int count, char **arguments, struct mounts *mounts)
{
	long owner = 0;

	if (count < 8 || count % WORDS || (count - 4) / WORDS > MOUNTS_MAX)
		return false;
	*mounts = (struct mounts){ .is_mapped = strcmp(arguments[3], "-") != 0,
				   .words = arguments + 4, .count = (count - 4) / WORDS };
	if (!parse_visit(arguments, &mounts->visit) ||
	    (mounts->is_mapped && !parse_number(arguments[3], UINT_MAX - 1L, &owner)))
		return false;
	mounts->owner = (uid_t)owner;
	for (char **word = mounts->words; word < arguments + count; word += WORDS)
		if (!is_word(word[ACCESS], "ro", "rw") || word[SOURCE][0] != '/' ||
		    !*word[BELOW] || word[BELOW][0] == '/' || word[DESTINATION][0] != '/')
			return false;
	return true;
}

static int open_folder(int root, const char *path, uint64_t rule)
{
	struct open_how how = {
		.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
		.resolve = rule | RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS,
	};
	int fd = -1;

	for (int i = 0; i < RACES_MAX; i++) {
		fd = (int)syscall(SYS_openat2, root, path, &how, sizeof(how));
		if (fd >= 0 || errno != EAGAIN)
			break;
	}
	return fd;
}

/* ---- the map of ids ---- */

static bool write_map(pid_t pid, const char *name, uid_t inside, uid_t outside)
{
	char path[64], line[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	int length = snprintf(line, sizeof(line), "%u %u 1", inside, outside);
	autoclose int fd = open(path, O_WRONLY | O_CLOEXEC);
	return fd >= 0 && write(fd, line, (size_t)length) == length;
}

/* A user namespace without any process, known by this descriptor alone. */
static int open_map(uid_t owner, uid_t uid)
{
	char path[64];
	int fd = -1;
	pid_t pid = (pid_t)syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL);

	if (pid < 0)
		return -1;
	if (pid == 0)
		for (;;)
			pause();
	snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)pid);
	if (write_map(pid, "uid_map", owner, uid) && write_map(pid, "gid_map", owner, uid))
		fd = open(path, O_RDONLY | O_CLOEXEC);
	int error = errno;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	errno = error;
	return fd;
}

/* ---- copies of mounts ---- */

static int make_tree(char **word, int map)
{
	struct mount_attr attributes = {
		.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
		.propagation = PROPAGATION_PRIVATE,
	};

	if (!strcmp(word[ACCESS], "ro"))
		attributes.attr_set |= MOUNT_ATTR_RDONLY;
	if (map >= 0) {
		attributes.attr_set |= MOUNT_ATTR_IDMAP;
		attributes.userns_fd = (uint64_t)map;
	}
	autoclose int source = open(word[SOURCE], O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (source < 0)
		return -1;
	autoclose int folder = open_folder(source, word[BELOW], RESOLVE_NO_XDEV);
	if (folder < 0)
		return -1;
	int tree = (int)syscall(SYS_open_tree, folder, "",
				TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH);
	if (tree >= 0 && syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attributes,
				 sizeof(attributes)) < 0)
		close_descriptor(&tree);
	return tree;
}

/* Fills trees; false and errno if one cannot be made, and `*which` is its number. */
static bool make_trees(const struct mounts *mounts, int *trees, int *which)
{
	autoclose int map = -1;

	if (mounts->is_mapped && (map = open_map(mounts->owner, mounts->visit.uid)) < 0)
		return false;
	for (*which = 0; *which < mounts->count; ++*which) {
		trees[*which] = make_tree(mounts->words + *which * WORDS, map);
		if (trees[*which] < 0)
			return false;
	}
	return true;
}

/* What a child answers: its descriptors come along if error is 0. */
struct answer {
	int error;
	int which;
};

union room {
	struct cmsghdr header;
	char bytes[CMSG_SPACE(sizeof(int) * MOUNTS_MAX)];
};

static void send_trees(int socket, struct answer answer, const int *trees, int count)
{
	union room room = { 0 };
	struct iovec part = { &answer, sizeof(answer) };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

	if (!answer.error) {
		message.msg_control = &room;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
		struct cmsghdr *head = CMSG_FIRSTHDR(&message);
		*head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count),
					  .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(head), trees, sizeof(int) * (size_t)count);
	}
	_exit(sendmsg(socket, &message, 0) < 0);
}

static bool take_trees(int socket, int *trees, int count, int *which)
{
	union room room = { 0 };
	struct answer answer = { .error = EPIPE };
	struct iovec part = { &answer, sizeof(answer) };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &room,
				  .msg_controllen = sizeof(room) };

	if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) < 0)
		return false;
	*which = answer.which;
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	if (!answer.error && (!head || head->cmsg_len != CMSG_LEN(sizeof(int) * (size_t)count)))
		answer.error = EPROTO;
	errno = answer.error;
	if (!answer.error)
		memcpy(trees, CMSG_DATA(head), sizeof(int) * (size_t)count);
	return !answer.error;
}

static bool trees_of_child(const struct mounts *mounts, int *trees, int *which)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return false;
	pid_t pid = fork();
	if (pid == 0) {
		struct answer answer = { 0 };
		if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0 ||
		    !make_trees(mounts, trees, &answer.which))
			answer.error = errno;
		send_trees(ends[1], answer, trees, mounts->count);
	}
	close(ends[1]);
	bool is_done = pid > 0 && take_trees(ends[0], trees, mounts->count, which);
	int error = errno;
	close(ends[0]);
	if (pid > 0)
		waitpid(pid, NULL, 0);
	errno = error;
	return is_done;
}

/* ---- into the sandbox ---- */

static bool attach(int root, int tree, const char *destination)
{
	autoclose int place = open_folder(root, destination + strspn(destination, "/"), 0);

	return place >= 0 && syscall(SYS_move_mount, tree, "", place, "", MOVE_BY_FD) == 0;
}

/* Users may take a folder away, or put a link in its place, until the moment it is opened. */
static bool is_no_folder(int error)
{
	return error == ENOENT || error == ENOTDIR || error == ELOOP || error == EXDEV ||
	       error == EAGAIN;
}

int mount_folders(int count, char **arguments)
{
	struct mounts mounts;
	int trees[MOUNTS_MAX], which = 0;

	if (!parse_mounts(count, arguments, &mounts)) {
		errno = EINVAL;
		return failed("--mount");
	}
	bool is_made = geteuid() == 0 ? make_trees(&mounts, trees, &which) :
					trees_of_child(&mounts, trees, &which);
	if (!is_made) {
		bool is_gone = is_no_folder(errno);
		int code = failed(mounts.words[which * WORDS + SOURCE]);
		return is_gone ? MOUNT_GONE : code;
	}
	if (!become(mounts.visit.uid))
		return failed("uid");
	if (!enter_sandbox(&mounts.visit))
		return failed("namespaces of the sandbox");
	autoclose int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	for (int i = 0; i < mounts.count; i++) {
		const char *destination = mounts.words[i * WORDS + DESTINATION];
		if (!attach(root, trees[i], destination))
			return failed(destination);
	}
	return 0;	/* descriptors of trees go with the process; what is attached stays */
}
