/*
 * retort-init - pid 1 of a sandbox: starts what the server tells it, reaps, opens files.
 *
 *	retort-init LISTEN_FD [--filter FD] [--home DIR] [--no-openat2]
 *	retort-init --cap-inodes ...	outside of any sandbox, once for each: inodes.c
 *	retort-init --mount ...		the same for those with mounts: mounts.c
 *	retort-init --as UID PROGRAM...	outside: become bubblewrap, as another uid: outside.c
 *
 * Theory of operation
 *
 * bubblewrap makes the sandbox and execs this program in it, with the listening end of a unix
 * socket (SOCK_SEQPACKET) whose other side, a path in a private folder, only the server can reach.
 * The server connects; when it goes away, steps go on, and the next server is accepted. protocol.h
 * is what they say to each other.
 *
 *	server ==socket== init (pid 1) --socketpair-- standby child --execve--> a step's program
 *	                    |                                                     `- its children
 *	                    `- wait: every orphan of the sandbox
 *
 * The loop is one poll over: SIGCHLD (as a descriptor), the server or the listening socket, and the
 * socketpairs of steps whose child has not exec'd yet. Every event is handled without waiting:
 *  - a request is answered at once (server.c, files.c), but for EXEC, which is handed to the
 *    standby child and answered when that child's socket closes by itself in execve (exec.c);
 *  - SIGCHLD reaps; the end of a step's main process kills what it left, and when nothing is left
 *    alive, the step has ended (reap.c);
 *  - what the server must be told waits in the step's record until it can be sent (step.c).
 *
 * What programs of the sandbox can do to init: they have its uid, so it is made undumpable (no
 * ptrace, no /proc/1/fd or environ); the kernel drops their signals to pid 1; they cannot reach its
 * socket; and it opens their files only in ways that cannot block or lead out of home (beneath.c).
 *
 * The state is one struct init. There is no global variable, and no signal handler.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "init.h"

/* Our fault or the launcher's; what programs do never ends init. */
static _Noreturn void die(const char *what, int error)
{
	fprintf(stderr, "retort-init: %s: %s\n", what, strerror(error));
	_exit(1);
}

/* ---- start ---- */

struct options {
	int listener;
	int filter;		/* a file with the programs' system call filter, or -1 */
	const char *home;
	bool no_openat2;	/* for tests: behave as on a host kernel without it */
};

/* A descriptor above 2, or -1. */
static int parse_descriptor(const char *text)
{
	char *end = NULL;
	long number = strtol(text, &end, 10);

	return *text && !*end && number > 2 && number < 65536 ? (int)number : -1;
}

static struct options parse_arguments(int count, char **arguments)
{
	struct options options = { .listener = -1, .filter = -1, .home = "/home/work" };

	if (count >= 2)
		options.listener = parse_descriptor(arguments[1]);
	for (int i = 2; i < count; i++) {
		if (!strcmp(arguments[i], "--home") && i + 1 < count)
			options.home = arguments[++i];
		else if (!strcmp(arguments[i], "--filter") && i + 1 < count &&
			 parse_descriptor(arguments[i + 1]) > 0)
			options.filter = parse_descriptor(arguments[++i]);
		else if (!strcmp(arguments[i], "--no-openat2"))
			options.no_openat2 = true;
		else
			options.listener = -1;
	}
	if (options.listener < 0)
		die("usage: retort-init LISTEN_FD [--filter FD] [--home DIR] [--no-openat2]",
		    EINVAL);
	return options;
}

static bool is_listening(int fd)
{
	int type = 0, listens = 0;
	socklen_t size = sizeof(int);

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_SEQPACKET &&
	       getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 && listens;
}

/* 0-2 are never free numbers, so that nothing that is opened later can become a program's stdin by
 * accident. */
static void hold_standard_descriptors(void)
{
	for (int fd = 0; fd <= 2; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
			die("/dev/null", errno);
}

/* Only 0-2, the listening socket and the score remain. Gives the score's new number, or -1. */
static int keep_descriptors(int listener, int score)
{
	const int kept = score < 0 ? -1 : listener + 1;

	if (score >= 0 && score != kept && dup3(score, kept, O_CLOEXEC) < 0)
		die("/proc/self/oom_score_adj", errno);
	if (listener > 3)
		syscall(SYS_close_range, 3, listener - 1, 0);
	close_all_from(score < 0 ? listener + 1 : kept + 1);
	if (fcntl(listener, F_SETFD, FD_CLOEXEC) < 0 || fcntl(listener, F_SETFL, O_NONBLOCK) < 0)
		die("listening socket", errno);
	return kept;
}

static int watch_children(bool is_pid1)
{
	sigset_t children, blocked;

	/* Whatever the launcher left ignored would stay ignored in programs. Asked of the kernel:
	 * signal() refuses 32 and 33, which glibc keeps for itself and GNU make leaves ignored.
	 * Zeros are the kernel's struct sigaction with SIG_DFL, on every architecture. */
	const unsigned long by_default[8] = { 0 };
	for (int number = 1; number < NSIG; number++)
		syscall(SYS_rt_sigaction, number, by_default, NULL, (NSIG - 1) / 8);
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	/* Pid 1 blocks nothing else: the kernel drops a default-disposition signal to it when it is
	 * sent from inside, but would queue a blocked one, and a program could fill the queue. */
	blocked = children;
	if (!is_pid1)
		sigaddset(&blocked, SIGPIPE);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	return signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* init's own limit of descriptors is raised: the kernel measures descriptors in flight, which
 * programs of the same uid can fill up, against the sender's limit. */
static void raise_descriptor_limit(struct init *in)
{
	if (getrlimit(RLIMIT_NOFILE, &in->descriptor_limit) < 0)
		die("getrlimit", errno);
	struct rlimit raised = in->descriptor_limit;
	raised.rlim_cur = raised.rlim_max;
	setrlimit(RLIMIT_NOFILE, &raised);
}

static struct init *start(const struct options *options)
{
	struct init *in = calloc(1, sizeof(*in));

	if (!in)
		die("memory", ENOMEM);
	in->listener = options->listener;
	in->peer = -1;
	in->is_pid1 = getpid() == 1;
	in->is_childless = true;
	in->has_openat2 = !options->no_openat2;
	standby_init(&in->standby);
	for (int i = 0; i < RETORT_STEPS_MAX; i++)
		step_init(&in->steps[i]);
	raise_descriptor_limit(in);
	in->signals = watch_children(in->is_pid1);
	if (in->signals < 0)
		die("signalfd", errno);
	/* Orphans must come to us even where we are not pid 1. */
	if (!in->is_pid1 && prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		die("PR_SET_CHILD_SUBREAPER", errno);
	if (!files_start(in, options->home))
		die(options->home, errno);
	return in;
}

/* ---- loop ---- */

#define ACCEPT_PAUSE_MS 100

struct watch {
	struct pollfd polled[2 + RETORT_STEPS_MAX];
	struct step *starting[RETORT_STEPS_MAX];
	nfds_t count;
};

static void watch_all(struct init *in, struct watch *watch)
{
	const bool has_peer = in->peer >= 0;
	const int listener = in->is_accept_paused ? -1 : in->listener;

	watch->polled[0] = (struct pollfd){ .fd = in->signals, .events = POLLIN };
	watch->polled[1] = (struct pollfd){
		.fd = has_peer ? in->peer : listener,
		.events = server_is_idle(in) ? POLLIN : POLLOUT,
	};
	watch->count = 2;
	for (int i = 0; i < RETORT_STEPS_MAX; i++) {
		if (in->steps[i].state != RETORT_STATE_STARTING)
			continue;
		/* No event is asked for: the end of the child's side shows as POLLHUP. */
		watch->starting[watch->count - 2] = &in->steps[i];
		watch->polled[watch->count++] = (struct pollfd){ .fd = in->steps[i].sock };
	}
}

static void handle_server(struct init *in, short events)
{
	if (in->peer < 0)
		server_accept(in);
	else if (server_is_idle(in))
		server_receive(in);
	else if (events & (POLLHUP | POLLERR))
		server_lost(in);
	/* else writable: server_flush comes anyway */
}

static void turn(struct init *in)
{
	struct watch watch;

	watch_all(in, &watch);
	int timeout_ms = ending_poll_ms(in);
	if (in->is_accept_paused && timeout_ms < 0)
		timeout_ms = ACCEPT_PAUSE_MS;
	in->is_accept_paused = false;
	int ready = poll(watch.polled, watch.count, timeout_ms);
	if (ready < 0 && errno != EINTR)
		die("poll", errno);
	/* Starts before ends: a child that exec'd and exited already is seen to have started. */
	for (nfds_t i = 2; ready > 0 && i < watch.count; i++)
		if (watch.polled[i].revents)
			step_resolve(watch.starting[i - 2]);
	if (ready == 0 || (ready > 0 && watch.polled[0].revents)) {
		struct signalfd_siginfo ignored;
		while (read(in->signals, &ignored, sizeof(ignored)) > 0)
			;
		reap(in);
	}
	if (ready > 0 && watch.polled[1].revents)
		handle_server(in, watch.polled[1].revents);
	server_flush(in);
}

int main(int count, char **arguments)
{
	sigset_t all;

	if (count >= 2 && !strcmp(arguments[1], "--as"))
		return run_as(count - 2, arguments + 2);
	/* Before anything else: no signal may end us half-made, and no program may look into us. One
	 * file must be opened before that: it is nobody's from then on. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	hold_standard_descriptors();
	const int score = score_open();
	if (prctl(PR_SET_DUMPABLE, 0) < 0)
		die("PR_SET_DUMPABLE", errno);
	if (count >= 2 && !strcmp(arguments[1], "--cap-inodes"))
		return cap_inodes(count - 2, arguments + 2);
	if (count >= 2 && !strcmp(arguments[1], "--mount"))
		return mount_folders(count - 2, arguments + 2);
	struct options options = parse_arguments(count, arguments);
	struct filter filter = { 0 };
	if (options.filter >= 0 && !filter_read(&filter, options.filter))
		die("--filter", errno);
	const int kept_score = keep_descriptors(options.listener, score);
	if (!is_listening(options.listener))
		die("LISTEN_FD is not a listening SOCK_SEQPACKET socket", EINVAL);

	/* From here on only the launcher's SIGKILL ends us. */
	struct init *in = start(&options);
	in->filter = filter;
	score_init(&in->score, kept_score);
	for (;;)
		turn(in);
}
