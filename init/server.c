/*
 * server.c - the connection: requests in, answers and events out.
 *
 * Nothing here waits. When the server does not read, at most one answer is kept, no further request
 * is taken, and what must be told about steps stays in their records: memory is bounded by
 * struct init, whoever stalls.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "init.h"

#define BATCH_MAX 32	/* requests handled in a row before looking at children again */

enum sent { SENT, BLOCKED, LOST, UNSENDABLE };

/* ---- out ---- */

static enum sent send_now(struct init *in, const void *bytes, size_t length, const int *fds,
			  int count)
{
	char control[CMSG_SPACE(sizeof(int) * ALL_DESCRIPTORS_MAX)] = { 0 };
	struct iovec data = { (void *)bytes, length };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1 };
	const size_t fds_size = sizeof(int) * (size_t)count;

	if (count) {
		message.msg_control = control;
		message.msg_controllen = CMSG_SPACE(fds_size);
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(fds_size);
		memcpy(CMSG_DATA(header), fds, fds_size);
	}
	if (sendmsg(in->peer, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
		return SENT;
	if (errno == EAGAIN || errno == EINTR) {
		in->is_blocked = true;
		return BLOCKED;
	}
	/* ETOOMANYREFS: a program may have filled its user's allowance of descriptors in flight. */
	if (errno == ETOOMANYREFS || errno == ENOMEM || errno == ENOBUFS)
		return UNSENDABLE;
	return LOST;
}

/* Keeps an answer until the server reads again. */
static bool keep_answer(struct outgoing *out, const void *bytes, size_t length, const int *fds,
			int count)
{
	for (int i = 0; i < count; i++) {
		/* Duplicates, for the caller's are closed or stay in a record. */
		out->fds.fd[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
		if (out->fds.fd[i] < 0)
			return false;
		out->fds.count = i + 1;
	}
	memcpy(out->bytes, bytes, length);
	out->length = length;
	return true;
}

/*
 * Answers at once or as soon as the server reads. Only one answer can be waiting, for while one
 * does, no request is taken (server_is_idle).
 */
void answer(struct init *in, const void *bytes, size_t length, const int *fds, int count)
{
	const struct retort_header *header = bytes;

	switch (send_now(in, bytes, length, fds, count)) {
	case SENT:
		break;
	case BLOCKED:
		if (keep_answer(&in->outgoing, bytes, length, fds, count))
			break;
		close_descriptors(&in->outgoing.fds);
		/* fall through */
	case UNSENDABLE:
		/* A failure carries no descriptors, so this ends here. */
		if (count)
			answer_failed(in, header->id, RETORT_PHASE_SEND, errno);
		else
			server_lost(in);
		break;
	case LOST:
		server_lost(in);
	}
}

void answer_done(struct init *in, uint32_t id, uint32_t count)
{
	struct retort_done reply = { .header = { RETORT_DONE, id }, .count = count };
	answer(in, &reply, sizeof(reply), NULL, 0);
}

void answer_failed(struct init *in, uint32_t id, uint32_t phase, int error)
{
	struct retort_failed reply = {
		.header = { RETORT_FAILED, id }, .phase = phase, .error = error,
	};
	answer(in, &reply, sizeof(reply), NULL, 0);
}

static enum sent send_start(struct init *in, const struct step *step)
{
	struct retort_started started = {
		.header = { RETORT_STARTED, step->request },
		.number = step->number, .pid = step->pid,
	};
	struct retort_failed failed = {
		.header = { RETORT_FAILED, step->request },
		.phase = step->phase, .error = step->error,
	};
	if (step->state == STATE_FAILED)
		return send_now(in, &failed, sizeof(failed), NULL, 0);
	return send_now(in, &started, sizeof(started), NULL, 0);
}

static enum sent send_exit(struct init *in, const struct step *step)
{
	struct retort_exited exited = {
		.header = { RETORT_EXITED, 0 }, .number = step->number, .wait_status = step->status,
		.usage = step->usage, .started_ns = step->started_ns, .ended_ns = step->ended_ns,
	};
	return send_now(in, &exited, sizeof(exited), NULL, 0);
}

/* STARTED or FAILED first, EXITED after it. */
static enum sent flush_step(struct init *in, struct step *step)
{
	enum sent result = SENT;

	/* A debt is paid only when sent: a full buffer leaves it to the next POLLOUT. */
	if (step->owes_answer && step->state != RETORT_STATE_STARTING) {
		result = send_start(in, step);
		step->owes_answer = result == BLOCKED;
		if (step->state == STATE_FAILED && result == SENT) {
			step_free(step);
			return SENT;
		}
	}
	if (result == SENT && step->owes_exit) {
		result = send_exit(in, step);
		step->owes_exit = result == BLOCKED;
	}
	return result;
}

void server_flush(struct init *in)
{
	struct outgoing *out = &in->outgoing;
	enum sent result = SENT;

	if (in->peer < 0)
		return;
	in->is_blocked = false;
	/* The kept answer is older than any debt of a step made since. */
	if (out->length) {
		result = send_now(in, out->bytes, out->length, out->fds.fd, out->fds.count);
		if (result == SENT) {
			out->length = 0;
			close_descriptors(&out->fds);
		}
	}
	for (int i = 0; i < RETORT_STEPS_MAX && result == SENT; i++)
		if (in->steps[i].state != STATE_FREE)
			result = flush_step(in, &in->steps[i]);
	if (result == LOST || result == UNSENDABLE)
		server_lost(in);
}

bool server_is_idle(const struct init *in)
{
	return !in->is_blocked && !in->outgoing.length;
}

/* The server went away: what it was not told, the next one finds with LIST. */
void server_lost(struct init *in)
{
	close_descriptor(&in->peer);
	close_descriptors(&in->outgoing.fds);
	in->outgoing.length = 0;
	in->is_blocked = false;
	in->is_greeted = false;
	for (int i = 0; i < RETORT_STEPS_MAX; i++) {
		struct step *step = &in->steps[i];
		step->owes_answer = false;
		step->owes_exit = false;
		if (step->state == STATE_FAILED)
			step_free(step);
	}
}

/* ---- in ---- */

void server_accept(struct init *in)
{
	in->peer = accept4(in->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	/* The connection stays in the queue, so without a pause poll would spin. */
	in->is_accept_paused = in->peer < 0 && errno != EINTR;
}

static void handle_hello(struct init *in, const struct retort_hello *msg)
{
	struct retort_welcome reply = {
		.header = { RETORT_WELCOME, msg->header.id },
		.version = RETORT_PROTOCOL_VERSION,
		.features = (in->is_pid1 ? RETORT_FEATURE_PID1 : 0U) |
			    (in->has_openat2 ? RETORT_FEATURE_OPENAT2 : 0U) |
			    (in->filter.count ? RETORT_FEATURE_FILTER : 0U),
	};

	/* Another version may have other layouts: not even RELEASE would be safe. */
	if (msg->version != RETORT_PROTOCOL_VERSION) {
		answer_failed(in, msg->header.id, RETORT_PHASE_PROTOCOL, EPROTONOSUPPORT);
		return;
	}
	autoclose int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (self < 0) {
		answer_failed(in, msg->header.id, RETORT_PHASE_OPEN, errno);
		return;
	}
	for (int i = 0; i < RETORT_STEPS_MAX; i++) {
		int state = in->steps[i].state;
		reply.unreleased += state == RETORT_STATE_ENDED;
		reply.running += state == RETORT_STATE_STARTING || state == RETORT_STATE_RUNNING ||
				 state == RETORT_STATE_ENDING;
	}
	in->is_greeted = true;
	answer(in, &reply, sizeof(reply), &self, 1);
}

/* What a well-formed request looks like from outside. */
struct shape {
	size_t size;			/* of its struct */
	size_t reserved;		/* offset of its reserved field; 0: it has none */
	bool has_more;			/* a variable part follows */
	int fds_least, fds_most;
};

#define SIZE(name) sizeof(struct retort_##name)
#define RESERVED(name) offsetof(struct retort_##name, reserved)
#define FIXED(name) SIZE(name), 0, false
#define FIXED_RESERVED(name) SIZE(name), RESERVED(name), false
#define MORE(name) SIZE(name), 0, true
#define MORE_RESERVED(name) SIZE(name), RESERVED(name), true

static const struct shape shapes[] = {
	[RETORT_HELLO] = { FIXED_RESERVED(hello), 0, 0 },
	[RETORT_PREPARE] = { FIXED_RESERVED(prepare), 0, 1 },
	[RETORT_EXEC] = { MORE(exec), 3, ALL_DESCRIPTORS_MAX },
	[RETORT_RELEASE] = { FIXED(release), 0, 0 },
	[RETORT_DROP] = { FIXED_RESERVED(drop), 0, 0 },
	[RETORT_LIST] = { FIXED_RESERVED(list), 0, 0 },
	[RETORT_KILL] = { FIXED(kill), 0, 0 },
	[RETORT_WAITING] = { FIXED(waiting), 0, 0 },
	[RETORT_FEED] = { MORE(feed), 0, 0 },
	[RETORT_OPEN] = { MORE(open), 0, 0 },
	[RETORT_MKDIRS] = { MORE_RESERVED(mkdirs), 0, 0 },
	[RETORT_LINK] = { MORE(link), 1, 1 },
	[RETORT_RENAME] = { MORE_RESERVED(rename), 0, 0 },
	[RETORT_UNLINK] = { MORE_RESERVED(unlink), 0, 0 },
};

/* Handlers may rely on this: their struct is all there, and so are its descriptors. */
static bool is_well_formed(const char *bytes, size_t length, int fd_count)
{
	struct retort_header header;
	uint32_t reserved = 0;

	if (length < sizeof(header) || length > RETORT_MESSAGE_MAX)
		return false;
	memcpy(&header, bytes, sizeof(header));
	if (header.type >= sizeof(shapes) / sizeof(shapes[0]) || !shapes[header.type].size)
		return false;
	const struct shape *shape = &shapes[header.type];
	if (length < shape->size || (length > shape->size && !shape->has_more))
		return false;
	if (shape->reserved)
		memcpy(&reserved, bytes + shape->reserved, sizeof(reserved));
	return !reserved && fd_count >= shape->fds_least && fd_count <= shape->fds_most;
}

static uint32_t id_of(const char *bytes, size_t length)
{
	uint32_t id = 0;

	if (length >= sizeof(struct retort_header))
		memcpy(&id, bytes + offsetof(struct retort_header, id), sizeof(id));
	return id;
}

void dispatch(struct init *in, const void *bytes, size_t length, struct descriptors *fds)
{
	if (!is_well_formed(bytes, length, fds->count)) {
		answer_failed(in, id_of(bytes, length), RETORT_PHASE_PROTOCOL, EINVAL);
		return;
	}
	const uint32_t type = ((const struct retort_header *)bytes)->type;
	struct cursor rest = { .at = bytes, .left = length };
	take_bytes(&rest, shapes[type].size);
	if (type != RETORT_HELLO && !in->is_greeted) {
		answer_failed(in, id_of(bytes, length), RETORT_PHASE_PROTOCOL, EPROTO);
		return;
	}
	switch (type) {
	case RETORT_HELLO: handle_hello(in, bytes); break;
	case RETORT_PREPARE: handle_prepare(in, bytes, fds); break;
	case RETORT_EXEC: handle_exec(in, bytes, length, fds); break;
	case RETORT_RELEASE: handle_release(in, bytes); break;
	case RETORT_DROP: handle_drop(in, bytes); break;
	case RETORT_LIST: handle_list(in, bytes); break;
	case RETORT_KILL: handle_kill(in, bytes); break;
	case RETORT_WAITING: handle_waiting(in, bytes); break;
	case RETORT_FEED: handle_feed(in, bytes, &rest); break;
	case RETORT_OPEN: handle_open(in, bytes, &rest); break;
	case RETORT_MKDIRS: handle_mkdirs(in, bytes, &rest); break;
	case RETORT_LINK: handle_link(in, bytes, &rest, fds->fd[0]); break;
	case RETORT_RENAME: handle_rename(in, bytes, &rest); break;
	case RETORT_UNLINK: handle_unlink(in, bytes, &rest); break;
	}
}

/* Receives one datagram. Its length; 0: the server is gone; -1: none is there. */
static ssize_t receive_one(struct init *in, struct descriptors *fds, bool *is_cut)
{
	char control[CMSG_SPACE(sizeof(fds->fd))] = { 0 };
	struct iovec data = { in->incoming, sizeof(in->incoming) };
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	ssize_t length = recvmsg(in->peer, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	if (length < 0)
		return errno == EAGAIN || errno == EINTR ? -1 : 0;
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
		fds->count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds->fd, CMSG_DATA(header), sizeof(int) * (size_t)fds->count);
	}
	/* More descriptors than fit were closed by the kernel. */
	*is_cut = message.msg_flags & (MSG_TRUNC | MSG_CTRUNC);
	return length;
}

void server_receive(struct init *in)
{
	/* Whatever a handler does not take of the descriptors is closed after each request. */
	for (int i = 0; i < BATCH_MAX && in->peer >= 0 && server_is_idle(in); i++) {
		autodescriptors struct descriptors fds = { 0 };
		bool is_cut = false;
		ssize_t length = receive_one(in, &fds, &is_cut);
		if (length < 0)
			return;
		if (length == 0)
			server_lost(in);
		else if (is_cut)
			answer_failed(in, id_of(in->incoming, (size_t)length),
				      RETORT_PHASE_PROTOCOL, EINVAL);
		else
			dispatch(in, in->incoming, (size_t)length, &fds);
	}
}
