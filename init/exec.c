/*
 * exec.c - the standby child, and what it becomes.
 *
 * A standby is forked before anybody waits for it. The server puts it into the next step's cgroups
 * (or it is born there) while nothing is urgent; then EXEC is one datagram to it. The child tells
 * how far it came through a page shared with init, and that it exec'd by the end of its socket:
 * both ends are close-on-exec. No message needs to come back, and init waits for none.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "init.h"

#define STANDBY_SOCKET 3

/* ---- in the child ---- */

/* The child's end: what it writes here is all that init will know. */
static _Noreturn void give_up(struct report *report, uint32_t phase, int error)
{
	report->phase = phase;
	report->error = error;
	_exit(127);
}

static void check(struct report *report, uint32_t phase, bool ok)
{
	if (!ok)
		give_up(report, phase, errno);
}

/* Everything that does not depend on what to execute, so that it costs nothing at EXEC. */
static void become_standby(const struct init *in, int sock, struct report *report)
{
	/* With a pid namespace the kernel ends us with init; without one, ask for it. */
	if (!in->is_pid1)
		prctl(PR_SET_PDEATHSIG, SIGKILL);

	/* First of all let go of init's descriptors: a pipe's end kept here would keep a running
	 * program's output from ever ending. */
	if (sock != STANDBY_SOCKET)
		dup3(sock, STANDBY_SOCKET, O_CLOEXEC);
	close_all_from(STANDBY_SOCKET + 1);

	/* A session of its own, out of reach for kill(0, ...) of anybody else. */
	setsid();
	umask(022);
	setrlimit(RLIMIT_NOFILE, &in->descriptor_limit);

	/* All signals are at their default since init's start. From here a stray one ends us, which
	 * init reports as "standby gone, nothing ran". Blocking them instead would deliver them
	 * to the program. */
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);

	/* Before anything of the program is known: it never runs a call without the filter. */
	check(report, RETORT_PHASE_FILTER, filter_load(&in->filter));
}

static size_t await_exec(const struct init *in, struct descriptors *fds)
{
	char control[CMSG_SPACE(sizeof(fds->fd))] = { 0 };
	struct iovec data = { (void *)in->incoming, sizeof(in->incoming) };
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	ssize_t length;

	do
		length = recvmsg(STANDBY_SOCKET, &message, MSG_CMSG_CLOEXEC);
	while (length < 0 && errno == EINTR);
	/* 0: init closed its end, for it has another standby or is gone. */
	if (length <= 0)
		_exit(0);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_type == SCM_RIGHTS) {
		fds->count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds->fd, CMSG_DATA(header), (size_t)fds->count * sizeof(int));
	}
	return (size_t)length;
}

static bool set_limits(const struct exec_request *exec)
{
	for (uint32_t i = 0; i < exec->head->limit_count; i++) {
		struct retort_limit asked;
		memcpy(&asked, exec->limits + i * sizeof(asked), sizeof(asked));
		struct rlimit limit = { .rlim_cur = asked.soft, .rlim_max = asked.hard };
		if (setrlimit((int)asked.resource, &limit) < 0)
			return false;
	}
	return true;
}

/* Fills a NULL-ended array with the next strings. init has one thread, so calloc is safe here. */
static char **string_array(struct cursor *from, uint32_t count)
{
	char **strings = calloc((size_t)count + 1, sizeof(*strings));
	for (uint32_t i = 0; strings && i < count; i++)
		strings[i] = (char *)take_string(from);
	return strings;
}

static _Noreturn void standby_main(const struct init *in, int sock, struct report *report)
{
	struct descriptors fds = { 0 };
	struct exec_request exec;

	become_standby(in, sock, report);
	size_t length = await_exec(in, &fds);
	if (!parse_exec(in->incoming, length, fds.count, &exec))
		give_up(report, RETORT_PHASE_PROTOCOL, EINVAL);
	char **arguments = string_array(&exec.arguments, exec.head->argument_count);
	char **environment = string_array(&exec.arguments, exec.head->environment_count);
	check(report, RETORT_PHASE_EXEC, arguments && environment);

	/* 0-2 were open all the time, so that what was received lies above them. */
	for (int i = 0; i < 3; i++)
		check(report, RETORT_PHASE_STDIO, dup2(fds.fd[i], i) == i);
	if (exec.head->flags & RETORT_EXEC_TTY)
		check(report, RETORT_PHASE_SESSION, ioctl(0, TIOCSCTTY, 0) == 0);
	/* They are all close-on-exec already; this is the second lock on that door. */
	syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC);

	check(report, RETORT_PHASE_CWD, chdir(exec.cwd) == 0);
	/* Last, for the limits are the program's: our own calls must not fail by them. */
	check(report, RETORT_PHASE_RLIMIT, set_limits(&exec));
	report->started_ns = monotonic_ns();
	report->phase = RETORT_PHASE_EXEC;
	execve(arguments[0], arguments, environment);
	give_up(report, RETORT_PHASE_EXEC, errno);
}

/* ---- in init ---- */

void standby_init(struct standby *standby)
{
	*standby = (struct standby){ .pidfd = -1, .sock = -1, .cgroup = -1 };
}

/* The process is gone or no longer wanted. The cgroup stays: the next one belongs there too. */
void standby_lost(struct standby *standby)
{
	close_descriptor(&standby->pidfd);
	close_descriptor(&standby->sock);
	if (standby->report)
		munmap(standby->report, sizeof(*standby->report));
	standby->report = NULL;
	standby->pid = 0;
}

static void standby_end(struct standby *standby)
{
	/* Not reaped yet, so the number is still its own. */
	if (standby->pid)
		process_signal(standby->pid, SIGKILL);
	standby_lost(standby);
}

void standby_discard(struct standby *standby)
{
	standby_end(standby);
	close_descriptor(&standby->cgroup);
}

/* Whether somebody killed it and its SIGCHLD is still to come. */
static bool is_standby_dead(const struct standby *standby)
{
	struct pollfd polled = { .fd = standby->sock };

	return standby->pid && poll(&polled, 1, 0) > 0;
}

int standby_make(struct init *in, int cgroup)
{
	struct standby *standby = &in->standby;
	int ends[2] = { -1, -1 };

	standby_init(standby);
	standby->cgroup = cgroup;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return errno;
	autoclose int child_end = ends[1];
	standby->sock = ends[0];
	void *page = mmap(NULL, sizeof(struct report), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (page != MAP_FAILED) {
		standby->report = page;
		score_for_child(&in->score);
		standby->pid = process_spawn(cgroup, &standby->pidfd);
		if (standby->pid == 0)
			standby_main(in, child_end, standby->report);
		const int saved = errno;
		score_for_init(&in->score);
		errno = saved;
	}
	if (page != MAP_FAILED && standby->pid > 0) {
		in->is_childless = false;
		return 0;
	}
	int error = errno;
	standby_lost(standby);
	return error;
}

void handle_prepare(struct init *in, const struct retort_prepare *msg, struct descriptors *fds)
{
	struct standby *standby = &in->standby;
	struct retort_prepared reply = { .header = { RETORT_PREPARED, msg->header.id } };
	int error = 0;

	if (msg->flags) {
		answer_failed(in, msg->header.id, RETORT_PHASE_PROTOCOL, EINVAL);
		return;
	}
	/* A child made now would be killed with the leftovers. */
	if (is_ending(in)) {
		answer_failed(in, msg->header.id, RETORT_PHASE_STEP, EBUSY);
		return;
	}
	if (fds->count)
		standby_discard(standby);
	else if (is_standby_dead(standby))
		standby_end(standby);
	if (!standby->pid)
		error = standby_make(in, fds->count ? take_descriptor(fds, 0) : standby->cgroup);
	if (error) {
		/* Forget the cgroup: the server tries again with another or without. */
		standby_discard(standby);
		answer_failed(in, msg->header.id, RETORT_PHASE_FORK, error);
		return;
	}
	reply.pid = standby->pid;
	answer(in, &reply, sizeof(reply), &standby->pidfd, 1);
}

/* Hands the request to the standby child. 0, or the errno of a child that is gone. */
static int send_exec(const struct standby *standby, const void *bytes, size_t length,
		     const struct descriptors *fds)
{
	char control[CMSG_SPACE(3 * sizeof(int))] = { 0 };
	struct iovec data = { (void *)bytes, length };
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(3 * sizeof(int));
	memcpy(CMSG_DATA(header), fds->fd, 3 * sizeof(int));
	if (sendmsg(standby->sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return errno;
	/* A background process may have stopped it: it has the same uid. */
	process_signal(standby->pid, SIGCONT);
	return 0;
}

/* Moves the standby child and the request into the record of a step. */
static void step_begin(struct step *step, struct standby *standby, const struct exec_request *exec,
		       struct descriptors *fds)
{
	struct stat standard_input = { 0 };

	fstat(fds->fd[0], &standard_input);
	step->number = exec->head->number;
	step->state = RETORT_STATE_STARTING;
	step->request = exec->head->header.id;
	step->owes_answer = true;
	step->flags = exec->head->flags;
	step->stdin_device = standard_input.st_dev;
	step->stdin_inode = standard_input.st_ino;
	for (int i = 0; i < RETORT_HELD_MAX; i++)
		step->held[i] = take_descriptor(fds, 3 + i);
	step->tag_length = exec->head->tag_length;

	step->pid = standby->pid;
	step->sock = standby->sock;
	step->report = standby->report;
	close_descriptor(&standby->pidfd);
	close_descriptor(&standby->cgroup);
	standby_init(standby);
}

/* Why a new step may not begin: 0 or an errno. */
static int refuse_step(struct init *in, uint64_t number)
{
	/* What begins now would be killed with the leftovers. */
	if (is_ending(in))
		return EBUSY;
	return step_find(in, number) ? EEXIST : 0;
}

/*
 * Gives the request to the child that the server asks for: the one it put into the step's cgroups.
 * Never to another one, for that would run outside of the limits. A server without limits
 * asks for any (0); then a child that somebody killed is replaced.
 */
static int give_to_standby(struct init *in, const struct exec_request *exec, size_t length,
			   const struct descriptors *fds, uint32_t *phase)
{
	struct standby *standby = &in->standby;
	pid_t wanted = exec->head->standby;
	int error;

	*phase = RETORT_PHASE_STANDBY;
	if (wanted && standby->pid != wanted)
		return ESRCH;
	if (standby->pid) {
		error = send_exec(standby, exec->head, length, fds);
		if (!error)
			return 0;
		standby_end(standby);
		if (wanted)
			return error;
	}
	*phase = RETORT_PHASE_FORK;
	error = standby_make(in, standby->cgroup);
	return error ? error : send_exec(standby, exec->head, length, fds);
}

void handle_exec(struct init *in, const void *bytes, size_t length, struct descriptors *fds)
{
	const struct retort_header *header = bytes;
	struct exec_request exec;
	uint32_t phase = RETORT_PHASE_STEP;

	if (!parse_exec(bytes, length, fds->count, &exec)) {
		answer_failed(in, header->id, RETORT_PHASE_PROTOCOL, EINVAL);
		return;
	}
	int error = refuse_step(in, exec.head->number);
	struct step *step = error ? NULL : step_new(in);
	autofree char *tag = malloc(exec.head->tag_length + 1);
	if (!error && !(step && tag))
		error = step ? ENOMEM : ENOSPC;
	if (!error)
		error = give_to_standby(in, &exec, length, fds, &phase);
	if (error) {
		answer_failed(in, header->id, phase, error);
		return;
	}
	step->tag = memcpy(tag, exec.tag, exec.head->tag_length);
	tag = NULL;
	step_begin(step, &in->standby, &exec, fds);
}
