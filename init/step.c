/*
 * step.c - the records of steps: at most RETORT_STEPS_MAX, from EXEC to RELEASE.
 *
 *   STARTING --exec'd--> RUNNING --main reaped--> ENDING --all dead--> ENDED --RELEASE--> free
 *       `--child gave up or died--> FAILED --answer sent--> free
 *
 * A record lives in init and not in the server, so that a step survives its server: all that a
 * new one must know is here, the descriptors of the server's own pipe ends too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "init.h"

struct step *step_find(struct init *in, uint64_t number)
{
	for (int i = 0; i < RETORT_STEPS_MAX; i++) {
		struct step *step = &in->steps[i];
		bool exists = step->state != STATE_FREE && step->state != STATE_FAILED;
		if (exists && step->number == number)
			return step;
	}
	return NULL;
}

/* Once reaped, a pid may belong to anybody, so records of ended steps do not count. */
struct step *step_of_pid(struct init *in, pid_t pid)
{
	for (int i = 0; i < RETORT_STEPS_MAX; i++) {
		struct step *step = &in->steps[i];
		if ((step->state == RETORT_STATE_STARTING || step->state == RETORT_STATE_RUNNING) &&
		    step->pid == pid)
			return step;
	}
	return NULL;
}

void step_init(struct step *step)
{
	*step = (struct step){ .state = STATE_FREE, .sock = -1 };
	for (int i = 0; i < RETORT_HELD_MAX; i++)
		step->held[i] = -1;
}

struct step *step_new(struct init *in)
{
	for (int i = 0; i < RETORT_STEPS_MAX; i++)
		if (in->steps[i].state == STATE_FREE)
			return &in->steps[i];
	return NULL;
}

static void forget_child_channel(struct step *step)
{
	close_descriptor(&step->sock);
	if (step->report)
		munmap(step->report, sizeof(*step->report));
	step->report = NULL;
}

static void drop_held(struct step *step, uint32_t mask)
{
	for (int i = 0; i < RETORT_HELD_MAX; i++)
		if (mask & (1U << i))
			close_descriptor(&step->held[i]);
}

void step_free(struct step *step)
{
	forget_child_channel(step);
	drop_held(step, ~0U);
	free(step->tag);
	step_init(step);
}

/*
 * Called when the child's end of the socket closed, or when the child was reaped. The report says
 * whether it stood before its execve: a child that was killed earlier ran nothing of the
 * program, and the server may safely try again.
 */
void step_resolve(struct step *step)
{
	const struct report report = *step->report;

	forget_child_channel(step);
	if (report.phase == RETORT_PHASE_EXEC && !report.error) {
		step->state = RETORT_STATE_RUNNING;
		step->started_ns = report.started_ns;
		return;
	}
	step->state = STATE_FAILED;
	step->phase = report.error ? report.phase : RETORT_PHASE_STANDBY;
	step->error = report.error ? report.error : ESRCH;
	/* The program's output shall end now, not when the record goes. */
	drop_held(step, ~0U);
	/* Nobody waits for the answer, so nobody needs the record. */
	if (!step->owes_answer)
		step_free(step);
}

void handle_release(struct init *in, const struct retort_release *msg)
{
	struct step *step = step_find(in, msg->number);

	if (!step) {
		answer_failed(in, msg->header.id, RETORT_PHASE_STEP, ENOENT);
		return;
	}
	/* A running step cannot be forgotten: its exit would have no home. */
	if (step->state != RETORT_STATE_ENDED) {
		answer_failed(in, msg->header.id, RETORT_PHASE_STEP, EBUSY);
		return;
	}
	step_free(step);
	answer_done(in, msg->header.id, 0);
}

void handle_drop(struct init *in, const struct retort_drop *msg)
{
	struct step *step = step_find(in, msg->number);

	if (!step) {
		answer_failed(in, msg->header.id, RETORT_PHASE_STEP, ENOENT);
		return;
	}
	drop_held(step, msg->mask);
	answer_done(in, msg->header.id, 0);
}

/*
 * Writes input into the step's pipe: the end that the server left with us first. We do it, and not
 * the server, because the host kernel does not tell how much a pipe was ever given: a server that
 * dies between a write and its note of it would leave the next one in doubt. Writing and counting
 * are one here, for when we die, so does the program.
 */
void handle_feed(struct init *in, const struct retort_feed *msg, const struct cursor *input)
{
	struct step *step = step_find(in, msg->number);

	if (!step) {
		answer_failed(in, msg->header.id, RETORT_PHASE_STEP, ENOENT);
		return;
	}
	if (!input->left) {
		answer_failed(in, msg->header.id, RETORT_PHASE_PROTOCOL, EINVAL);
		return;
	}
	/* Init waits for nothing: an end that would block is none of those that it is given. */
	int flags = fcntl(step->held[0], F_GETFL);
	if (flags >= 0 && !(flags & O_NONBLOCK)) {
		answer_failed(in, msg->header.id, RETORT_PHASE_FEED, EINVAL);
		return;
	}
	ssize_t written = write(step->held[0], input->at, input->left);
	if (written < 0 && errno != EAGAIN && errno != EINTR) {
		answer_failed(in, msg->header.id, RETORT_PHASE_FEED, errno);
		return;
	}
	written = written < 0 ? 0 : written;
	step->fed += (uint64_t)written;
	answer_done(in, msg->header.id, (uint32_t)written);
}

static const struct step *step_at(const struct init *in, uint32_t index)
{
	for (int i = 0; i < RETORT_STEPS_MAX; i++) {
		const struct step *step = &in->steps[i];
		if (step->state == STATE_FREE || step->state == STATE_FAILED)
			continue;
		if (index-- == 0)
			return step;
	}
	return NULL;
}

void handle_list(struct init *in, const struct retort_list *msg)
{
	const struct step *step = step_at(in, msg->index);
	struct {
		struct retort_step head;
		char tag[RETORT_TAG_MAX];
	} reply;
	int fds[RETORT_HELD_MAX], count = 0;

	if (!step) {
		answer_failed(in, msg->header.id, RETORT_PHASE_STEP, ENOENT);
		return;
	}
	reply.head = (struct retort_step){
		.header = { RETORT_STEP, msg->header.id },
		.number = step->number, .state = (uint32_t)step->state, .pid = step->pid,
		.wait_status = step->status, .flags = step->flags, .tag_length = step->tag_length,
		.usage = step->usage, .started_ns = step->started_ns, .ended_ns = step->ended_ns,
		.fed = step->fed,
	};
	for (int i = 0; i < RETORT_HELD_MAX; i++)
		if (step->held[i] >= 0) {
			reply.head.held_mask |= 1U << i;
			fds[count++] = step->held[i];
		}
	memcpy(reply.tag, step->tag, step->tag_length);
	answer(in, &reply, sizeof(reply.head) + step->tag_length, fds, count);
}
