/*
 * reap.c - the end of processes.
 *
 * A step has ended when its main process was reaped *and* nothing it left behind is alive: only
 * then may the server read its results. As pid 1, "nothing" is exact: every orphan becomes our
 * child, so the step is over when wait finds no child at all. A leftover that cannot die yet (it
 * sleeps in the host kernel) delays EXITED, not init: its SIGCHLD will wake the loop.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "init.h"

#define PASS_INTERVAL_MS 10	/* between two looks at what sends us no SIGCHLD */

static uint64_t microseconds(struct timeval time)
{
	return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_usec;
}

static void main_ended(struct step *step, int status, const struct rusage *usage)
{
	/* Reaped before its socket was seen to close: both tell through the report. */
	if (step->state == RETORT_STATE_STARTING)
		step_resolve(step);
	if (step->state != RETORT_STATE_RUNNING)
		return;
	step->state = RETORT_STATE_ENDING;
	step->ended_ns = monotonic_ns();
	step->status = status;
	step->usage = (struct retort_usage){
		.user_us = microseconds(usage->ru_utime),
		.system_us = microseconds(usage->ru_stime),
		.max_rss_kib = (uint64_t)usage->ru_maxrss,
		.minor_faults = (uint64_t)usage->ru_minflt,
		.major_faults = (uint64_t)usage->ru_majflt,
		.in_blocks = (uint64_t)usage->ru_inblock,
		.out_blocks = (uint64_t)usage->ru_oublock,
		.voluntary_switches = (uint64_t)usage->ru_nvcsw,
		.involuntary_switches = (uint64_t)usage->ru_nivcsw,
	};
}

static void reap_ready(struct init *in)
{
	int status;
	struct rusage usage;
	bool was_killed = false;
	pid_t pid;

	while ((pid = process_reap(&status, &usage)) > 0) {
		struct step *step = step_of_pid(in, pid);
		was_killed |= WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
		if (pid == in->standby.pid)
			standby_lost(&in->standby);
		else if (step)
			main_ended(step, status, &usage);
	}
	in->is_childless = pid < 0 && errno == ECHILD;
	/* Before anything is sent or made, as that takes memory. */
	if (was_killed && !in->has_killed)
		process_await_memory();
}

static int count_state(const struct init *in, int state)
{
	int count = 0;

	for (int i = 0; i < RETORT_STEPS_MAX; i++)
		count += in->steps[i].state == state;
	return count;
}

static bool others_run(const struct init *in)
{
	return count_state(in, RETORT_STATE_STARTING) || count_state(in, RETORT_STATE_RUNNING);
}

bool is_ending(const struct init *in)
{
	return count_state(in, RETORT_STATE_ENDING) > 0;
}

int ending_poll_ms(const struct init *in)
{
	/* A session's members need not be our children, and outside of a pid namespace a pass over
	 * descendants may miss one that is just being born: look again soon. */
	return is_ending(in) && (others_run(in) || !in->is_pid1) ? PASS_INTERVAL_MS : -1;
}

/*
 * Whether nothing of the step is alive; kills what is. While another step runs, the two can be told
 * apart by their sessions only: what left its session (a daemon) goes with the last step.
 */
static bool is_over(struct init *in, const struct step *step)
{
	if (step->flags & RETORT_EXEC_KEEP_BACKGROUND)
		return true;
	if (others_run(in)) {
		in->has_killed = true;
		return process_signal_session(step->pid) == 0;
	}
	if (!in->is_childless) {
		in->has_killed = true;
		process_signal_all(in, SIGKILL);
	}
	return in->is_childless;
}

void reap(struct init *in)
{
	reap_ready(in);
	/* After all that is ready was reaped, for only now is_childless is the whole truth. */
	for (int i = 0; i < RETORT_STEPS_MAX; i++) {
		struct step *step = &in->steps[i];
		if (step->state != RETORT_STATE_ENDING || !is_over(in, step))
			continue;
		step->state = RETORT_STATE_ENDED;
		/* Only in a sandbox: elsewhere (tests) they would be the host's. */
		if (in->is_pid1 && in->is_childless && !(step->flags & RETORT_EXEC_KEEP_BACKGROUND))
			ipc_remove_all();
		in->has_killed = false;
		/* Without a server it is found by LIST. */
		step->owes_exit = in->is_greeted;
	}
}

/* 0 or an errno. A number of a process is used only while it is ours: not reaped. */
static int kill_step(struct init *in, const struct step *step, int signal, uint32_t scope)
{
	bool has_main = step && (step->state == RETORT_STATE_STARTING ||
				 step->state == RETORT_STATE_RUNNING);
	int result;

	in->has_killed |= signal == SIGKILL && has_main;
	if (scope == RETORT_SCOPE_EVERYTHING)
		result = process_signal_all(in, signal);
	else if (has_main)
		result = process_signal(scope == RETORT_SCOPE_GROUP ? -step->pid : step->pid,
					signal);
	else
		return ESRCH;
	return result < 0 ? errno : 0;
}

void handle_kill(struct init *in, const struct retort_kill *msg)
{
	const struct step *step = step_find(in, msg->number);
	bool is_scope = msg->scope >= RETORT_SCOPE_MAIN && msg->scope <= RETORT_SCOPE_EVERYTHING;

	if (msg->signal < 0 || msg->signal >= NSIG || !is_scope ||
	    (!msg->number && msg->scope != RETORT_SCOPE_EVERYTHING)) {
		answer_failed(in, msg->header.id, RETORT_PHASE_PROTOCOL, EINVAL);
		return;
	}
	if (msg->number && !step) {
		answer_failed(in, msg->header.id, RETORT_PHASE_STEP, ENOENT);
		return;
	}
	int error = kill_step(in, step, msg->signal, msg->scope);
	if (error)
		answer_failed(in, msg->header.id, RETORT_PHASE_KILL, error);
	else
		answer_done(in, msg->header.id, 0);
}
