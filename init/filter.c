/*
 * filter.c - the system call filter of programs (seccomp(2)).
 *
 * The server compiles it and hands it down as a file; init keeps it and every standby child loads
 * it before it may become a program. init itself runs without: it is pid 1, makes no use of what
 * programs pass around, and needs calls that they do not get (clone3 into a cgroup).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init.h"

bool filter_read(struct filter *filter, int fd)
{
	struct stat status;
	const size_t size = sizeof(struct sock_filter);

	if (fstat(fd, &status) < 0)
		return false;
	errno = EINVAL;
	if (status.st_size <= 0 || (size_t)status.st_size % size ||
	    (size_t)status.st_size / size > BPF_MAXINSNS)
		return false;
	filter->code = malloc((size_t)status.st_size);
	if (!filter->code)
		return false;
	/* By position: the server hands the same file to every sandbox. */
	ssize_t length = pread(fd, filter->code, (size_t)status.st_size, 0);
	if (length != status.st_size) {
		errno = length < 0 ? errno : EIO;
		return false;
	}
	filter->count = (unsigned short)((size_t)length / size);
	return true;
}

bool filter_load(const struct filter *filter)
{
	struct sock_fprog program = { .len = filter->count, .filter = filter->code };

	if (!filter->count)
		return true;
	/* bubblewrap has set it; without it the kernel refuses filters of the unprivileged. */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return false;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}
