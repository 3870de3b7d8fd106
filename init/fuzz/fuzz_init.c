/*
 * fuzz_init.c - libFuzzer drives init's message handling and its state machine.
 *
 * An input is an options byte and then a series of acts: datagrams with descriptors, children that
 * exec, give up or end, a server that stalls, drains or goes away. Requests go through a real
 * socket and the real parser, and act on real files in a temporary folder; processes are doubles.
 *
 * Besides what the sanitizers see, each input must leave no descriptor open, and everything that
 * init says must be well formed and in order: one answer per EXEC, EXITED only after STARTED.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../init.h"
#include "double.h"

#define require(condition) do { if (!(condition)) { \
	fprintf(stderr, "broken: %s (line %d)\n", #condition, __LINE__); abort(); } } while (0)

enum { OPTION_OPENAT2 = 1, OPTION_PID1 = 2, OPTION_STALL = 4, OPTION_GREET = 8 };

struct input {
	const uint8_t *at;
	size_t left;
};

struct world {
	struct init *in;
	int server;			/* the server's end of the connection */
	bool is_stalled;
	uint64_t started[256];		/* numbers whose STARTED this server has seen */
	int started_count;
};

static char home[] = "/tmp/retort-fuzz-XXXXXX";

static unsigned take(struct input *input, size_t size)
{
	unsigned value = 0;
	for (size_t i = 0; i < size && input->left; i++, input->left--)
		value |= (unsigned)*input->at++ << (8 * i);
	return value;
}

static int count_descriptors(void)
{
	DIR *folder = opendir("/proc/self/fd");
	int count = 0;
	while (readdir(folder))
		count++;
	closedir(folder);
	return count;
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *where)
{
	(void)info;
	if (where->level > 0)
		(type == FTW_DP ? rmdir : unlink)(path);
	return 0;
}

/* ---- the server's side ---- */

static bool was_started(const struct world *world, uint64_t number)
{
	for (int i = 0; i < world->started_count; i++)
		if (world->started[i] == number)
			return true;
	return false;
}

static size_t size_of_answer(uint32_t type)
{
	switch (type) {
	case RETORT_WELCOME: return sizeof(struct retort_welcome);
	case RETORT_PREPARED: return sizeof(struct retort_prepared);
	case RETORT_STARTED: return sizeof(struct retort_started);
	case RETORT_DONE: return sizeof(struct retort_done);
	case RETORT_FAILED: return sizeof(struct retort_failed);
	case RETORT_STEP: return sizeof(struct retort_step);
	case RETORT_INPUT: return sizeof(struct retort_input);
	case RETORT_OPENED: return sizeof(struct retort_opened);
	case RETORT_EXITED: return sizeof(struct retort_exited);
	}
	return 0;
}

static void check_answer(struct world *world, const char *bytes, size_t length, int fd_count)
{
	struct retort_header header;
	struct retort_step step;
	struct retort_failed failed;
	uint64_t number = 0;

	require(length >= sizeof(header));
	memcpy(&header, bytes, sizeof(header));
	size_t size = size_of_answer(header.type);
	require(size && length >= size);
	require(length == size || header.type == RETORT_STEP);
	if (header.type == RETORT_STARTED || header.type == RETORT_EXITED)
		memcpy(&number, bytes + sizeof(header), sizeof(number));
	if (header.type == RETORT_STARTED && world->started_count < 256)
		world->started[world->started_count++] = number;
	if (header.type == RETORT_EXITED)
		require(was_started(world, number) || world->started_count == 256);
	if (header.type == RETORT_STEP) {
		memcpy(&step, bytes, sizeof(step));
		require(length == sizeof(step) + step.tag_length);
		require(fd_count == __builtin_popcount(step.held_mask));
	} else if (header.type == RETORT_FAILED) {
		memcpy(&failed, bytes, sizeof(failed));
		require(failed.error > 0 && failed.phase >= 1 && failed.phase <= RETORT_PHASE_FEED);
		require(fd_count == 0);
	} else {
		require(fd_count == (header.type == RETORT_WELCOME ||
				     header.type == RETORT_PREPARED || header.type == RETORT_OPENED));
	}
}

static bool receive_answer(struct world *world)
{
	static char bytes[RETORT_ANSWER_MAX + 1];
	char control[CMSG_SPACE(sizeof(int) * 8)];
	struct iovec data = { bytes, sizeof(bytes) };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = sizeof(control) };
	ssize_t length = recvmsg(world->server, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int fds[8], count = 0;

	if (length <= 0)
		return false;
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (header) {
		count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(header), sizeof(int) * (size_t)count);
	}
	require(!(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)));
	check_answer(world, bytes, (size_t)length, count);
	for (int i = 0; i < count; i++)
		close(fds[i]);
	return true;
}

static void settle(struct world *world)
{
	server_flush(world->in);
	while (!world->is_stalled && receive_answer(world))
		server_flush(world->in);
}

static void connect_server(struct world *world)
{
	int ends[2], small = 4608;

	require(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
	/* So that a stalled server is felt after a few answers. */
	setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	world->in->peer = ends[0];
	world->server = ends[1];
	world->started_count = 0;
	/* Steps of the server before: their EXITED needs no STARTED. */
	for (int i = 0; i < RETORT_STEPS_MAX; i++)
		if (world->in->steps[i].state != STATE_FREE)
			world->started[world->started_count++] = world->in->steps[i].number;
}

static void disconnect_server(struct world *world)
{
	server_lost(world->in);
	close(world->server);
}

/* ---- acts ---- */

static int make_descriptor(unsigned kind)
{
	int ends[2];

	switch (kind) {
	case 0: return open(home, O_WRONLY | O_TMPFILE | O_CLOEXEC, 0600);
	case 1: return open(home, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	case 2: require(pipe2(ends, O_CLOEXEC) == 0); close(ends[1]); return ends[0];
	}
	return open("/dev/null", O_RDWR | O_CLOEXEC);
}

static void send_request(struct world *world, const void *bytes, size_t length, unsigned fd_count,
			 unsigned kind)
{
	char control[CMSG_SPACE(sizeof(int) * 8)] = { 0 };
	struct iovec data = { (void *)bytes, length };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1 };
	int fds[8];

	if (fd_count) {
		message.msg_control = control;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
		for (unsigned i = 0; i < fd_count; i++)
			fds[i] = make_descriptor(kind);
		memcpy(CMSG_DATA(header), fds, sizeof(int) * fd_count);
	}
	sendmsg(world->server, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	for (unsigned i = 0; i < fd_count; i++)
		close(fds[i]);
}

static void act_datagram(struct world *world, struct input *input)
{
	size_t length = take(input, 2);
	unsigned fds = take(input, 1);

	if (length > input->left)
		length = input->left;
	if (!length)	/* an empty datagram reads as the end of the connection */
		return;
	send_request(world, input->at, length, fds & 7, fds >> 3 & 3);
	input->at += length;
	input->left -= length;
	if (server_is_idle(world->in))
		server_receive(world->in);
}

/* What main.c does with a socketpair that hung up. */
static void resolve_starting(struct world *world)
{
	for (int i = 0; i < RETORT_STEPS_MAX; i++) {
		struct step *step = &world->in->steps[i];
		if (step->state != RETORT_STATE_STARTING)
			continue;
		struct pollfd polled = { .fd = step->sock };
		if (poll(&polled, 1, 0) > 0)
			step_resolve(step);
	}
}

static struct step *pick_step(struct world *world, unsigned index)
{
	return &world->in->steps[index % RETORT_STEPS_MAX];
}

/* The child got this far; written before its socket closes, as the real one does. */
static void act_child(struct world *world, struct input *input)
{
	struct step *step = pick_step(world, take(input, 1));
	unsigned outcome = take(input, 1);

	if (step->state != RETORT_STATE_STARTING)
		return;
	if (outcome % 3 == 0) {
		step->report->phase = RETORT_PHASE_EXEC;
		double_exec(step->pid);
	} else if (outcome % 3 == 1) {
		step->report->phase = RETORT_PHASE_STDIO + outcome / 3 % 5;
		step->report->error = ENOENT;
		double_exit(step->pid, 127 << 8);
	} else {
		double_exit(step->pid, 9);
	}
	if (outcome & 128)	/* SIGCHLD may be seen first */
		reap(world->in);
	resolve_starting(world);
}

static void act_end(struct world *world, struct input *input)
{
	unsigned which = take(input, 1);
	int status = (int)take(input, 2);
	struct step *step = pick_step(world, which);

	if (which & 128)
		double_exit(world->in->standby.pid, status);
	else if (step->state == RETORT_STATE_STARTING || step->state == RETORT_STATE_RUNNING)
		double_exit(step->pid, status);
	reap(world->in);
	resolve_starting(world);
}

static void act(struct world *world, struct input *input)
{
	switch (take(input, 1) % 8) {
	case 4: act_child(world, input); break;
	case 5: act_end(world, input); break;
	case 6: world->is_stalled = !world->is_stalled; break;
	case 7: disconnect_server(world); connect_server(world); break;
	default: act_datagram(world, input);
	}
	if (world->in->peer < 0) {
		close(world->server);
		connect_server(world);
	}
	settle(world);
}

static void greet(struct world *world)
{
	struct retort_hello hello = { .header = { RETORT_HELLO, 1 },
				      .version = RETORT_PROTOCOL_VERSION };
	send_request(world, &hello, sizeof(hello), 0, 0);
	server_receive(world->in);
	settle(world);
}

/* ---- libFuzzer ---- */

int LLVMFuzzerInitialize(int *count, char ***arguments);
int LLVMFuzzerInitialize(int *count, char ***arguments)
{
	(void)count, (void)arguments;
	require(mkdtemp(home));
	umask(0);
	return 0;
}

static void init_begin(struct init *in, unsigned options)
{
	memset(in, 0, offsetof(struct init, incoming));
	in->listener = in->peer = in->signals = in->score.fd = -1;
	in->is_pid1 = options & OPTION_PID1;
	in->is_childless = true;
	in->has_openat2 = options & OPTION_OPENAT2;
	standby_init(&in->standby);
	for (int i = 0; i < RETORT_STEPS_MAX; i++)
		step_init(&in->steps[i]);
	require(files_start(in, home));
	in->has_openat2 = options & OPTION_OPENAT2;
}

static void init_end(struct init *in)
{
	for (int i = 0; i < RETORT_STEPS_MAX; i++)
		step_free(&in->steps[i]);
	standby_discard(&in->standby);
	close_descriptor(&in->home);
	double_reset();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	static struct init in;
	static unsigned runs;
	struct world world = { .in = &in };
	struct input input = { bytes, length };
	const int before = count_descriptors();
	unsigned options = take(&input, 1);

	double_reset();
	init_begin(&in, options);
	connect_server(&world);
	if (options & OPTION_GREET)
		greet(&world);
	world.is_stalled = options & OPTION_STALL;
	while (input.left)
		act(&world, &input);
	world.is_stalled = false;
	settle(&world);
	disconnect_server(&world);
	init_end(&in);
	require(count_descriptors() == before);
	if (++runs % 64 == 0)
		nftw(home, remove_entry, 32, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
	return 0;
}
