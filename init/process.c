/*
 * process.c - every system call that makes, ends or awaits a process.
 *
 * Apart from the rest so that the fuzzer can put a harmless double in its place
 * (fuzz/process_double.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "init.h"

/*
 * clone3 rather than fork: the pidfd comes without a race, and the child is born inside its cgroup.
 * A move afterwards would wait for an RCU grace period, 8-14 ms on an idle machine.
 */
pid_t process_spawn(int cgroup, int *pidfd)
{
	struct clone_args args = {
		.flags = CLONE_PIDFD,
		.pidfd = (uint64_t)(uintptr_t)pidfd,
		.exit_signal = SIGCHLD,
	};
	if (cgroup >= 0) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (uint64_t)cgroup;
	}
	pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
	if (pid >= 0 || errno != ENOSYS || cgroup >= 0)
		return pid;

	/* No clone3 (gVisor): the pidfd is safe a moment later too, for only we reap the child. */
	pid = fork();
	if (pid > 0)
		*pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	return pid;
}

pid_t process_reap(int *status, struct rusage *usage)
{
	/* __WALL: also what was cloned with another exit signal than SIGCHLD. */
	return wait4(-1, status, WNOHANG | __WALL, usage);
}

/*
 * The memory of an internet socket comes back a grace period (RCU) after its close, so after the end
 * of the process that held it. Until then the group may stand above its limit, for what arrives at
 * a socket is charged all the same; and whoever asks for a page is then killed: init, if nobody else
 * is left. Nothing tells when it is over (two grace periods by membarrier(2) were too short, for
 * then the freeing only begins), so this is a time: long for any machine, short beside a kill.
 */
void process_await_memory(void)
{
	const struct timespec pause = { .tv_nsec = 100000000 };

	nanosleep(&pause, NULL);	/* takes no memory itself */
}

int process_signal(pid_t pid, int signal)
{
	return kill(pid, signal);
}

/* Marks whose ancestors include init; the list may be in any order. Returns whether one was new. */
static bool mark_descendants(const struct process *list, size_t count, bool *is_ours, pid_t self)
{
	bool changed = false;

	for (size_t i = 0; i < count; i++) {
		bool ours = list[i].parent == self;
		for (size_t j = 0; j < count && !ours && !is_ours[i]; j++)
			ours = is_ours[j] && list[j].pid == list[i].parent;
		if (ours && !is_ours[i])
			changed = is_ours[i] = true;
	}
	return changed;
}

/* Outside of a pid namespace (tests only): one pass over init's descendants. */
static int signal_descendants(int signal)
{
	struct process list[PROC_TASKS_MAX];
	bool is_ours[PROC_TASKS_MAX] = { false };
	size_t count = proc_list(list, PROC_TASKS_MAX);
	bool found = false;

	while (mark_descendants(list, count, is_ours, getpid()))
		;
	for (size_t i = 0; i < count; i++)
		if (is_ours[i] && list[i].state != 'Z' && kill(list[i].pid, signal) == 0)
			found = true;
	errno = ESRCH;
	return found ? 0 : -1;
}

int process_signal_all(const struct init *in, int signal)
{
	/* As pid 1, -1 means every process of the namespace but us, in one go under the kernel's
	 * task list lock: a fork under way either fails or its child is hit too. */
	return in->is_pid1 ? kill(-1, signal) : signal_descendants(signal);
}

int process_signal_session(pid_t session)
{
	struct process list[PROC_TASKS_MAX];
	size_t count = proc_list(list, PROC_TASKS_MAX);
	int alive = 0;

	for (size_t i = 0; i < count; i++)
		if (list[i].session == session && list[i].state != 'Z' && list[i].pid != getpid()) {
			kill(list[i].pid, SIGKILL);
			alive++;
		}
	return alive;
}
