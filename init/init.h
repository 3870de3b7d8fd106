/* init.h - what the files of retort-init share, grouped by file. */
#ifndef RETORT_INIT_H
#define RETORT_INIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "protocol.h"

#define ALL_DESCRIPTORS_MAX (3 + RETORT_HELD_MAX)	/* of one datagram */

struct init;

/* ---- util.c: descriptors, parsing ---- */

#define autoclose __attribute__((cleanup(close_descriptor)))
#define autofree __attribute__((cleanup(free_pointer)))

void close_descriptor(int *fd);		/* closes unless negative, sets -1, keeps errno */
void free_pointer(void *pointer);	/* for variables of pointer type */
void close_all_from(int first);		/* close_range(2) up to the last one */
uint64_t monotonic_ns(void);

/* The descriptors of one datagram: closed at the end of its handling unless taken. */
struct descriptors {
	int count;
	int fd[ALL_DESCRIPTORS_MAX];
};
#define autodescriptors __attribute__((cleanup(close_descriptors)))
void close_descriptors(struct descriptors *all);
int take_descriptor(struct descriptors *all, int index);

/* Reads a datagram from front to back; one mistake makes every later read fail. */
struct cursor {
	const char *at;
	size_t left;
	bool failed;
};
const void *take_bytes(struct cursor *from, size_t length);
const char *take_string(struct cursor *from);	/* points into the datagram */
bool is_consumed(const struct cursor *from);	/* to the last byte, without a mistake */

/* An EXEC datagram, taken apart; everything points into the datagram. */
struct exec_request {
	const struct retort_exec *head;
	const char *limits;		/* head->limit_count of struct retort_limit, unaligned */
	const char *tag;
	const char *cwd;
	struct cursor arguments;	/* head->argument_count strings, then the environment's */
};
bool parse_exec(const void *bytes, size_t length, int descriptor_count, struct exec_request *exec);

/* ---- process.c: every call that makes, ends or awaits a process ---- */

pid_t process_spawn(int cgroup, int *pidfd);	/* fork; 0 in the child; -1 and errno */
pid_t process_reap(int *status, struct rusage *usage);	/* 0: none ready, -1: no child at all */
void process_await_memory(void);	/* of the dead: what the host kernel frees a little later */
int process_signal(pid_t pid, int signal);	/* pid < 0: its process group */
int process_signal_all(const struct init *in, int signal);
int process_signal_session(pid_t session);	/* SIGKILL; how many were alive */

/* ---- filter.c: the system call filter of programs ---- */

struct sock_filter;
struct filter {
	struct sock_filter *code;
	unsigned short count;		/* 0: there is none */
};
bool filter_read(struct filter *filter, int fd);	/* false and errno: not a filter */
bool filter_load(const struct filter *filter);		/* for this process and all it becomes */

/* ---- ipc.c: what programs leave that is no process and no file ---- */

void ipc_remove_all(void);		/* System V objects of this namespace */

/* ---- score.c: whom the host kernel takes first when memory is short ---- */

struct score {
	int fd;				/* /proc/1/oom_score_adj; -1: cannot be set */
	char own[12];
	char of_children[12];
};
int score_open(void);			/* while still dumpable; -1: there is none */
void score_init(struct score *score, int fd);
void score_for_child(const struct score *score);	/* around a fork, in init alone */
void score_for_init(const struct score *score);

/* ---- outside.c: the other things that this program can do, beside being an init ---- */

struct visit {
	pid_t pid;			/* of the sandbox's init, on the host */
	int pidfd;
	uid_t uid;			/* that made the sandbox */
};
int failed(const char *what);		/* says errno on stderr; an exit code */
bool parse_number(const char *text, long most, long *number);	/* decimal, not negative */
bool parse_visit(char **arguments, struct visit *visit);	/* of three strings */
bool become(uid_t uid);
int run_as(int count, char **arguments);
bool enter_sandbox(const struct visit *visit);

/* ---- inodes.c ---- */

struct inode_caps {
	struct visit visit;
	char **places;			/* each a mount point and the number of its files */
	int count;			/* of strings in places */
};
bool parse_inode_caps(int count, char **arguments, struct inode_caps *caps);
int cap_inodes(int count, char **arguments);	/* an exit code */

/* ---- mounts.c ---- */

struct mounts {
	struct visit visit;
	bool is_mapped;			/* files of owner's appear as the sandbox's uid */
	uid_t owner;
	char **words;			/* each mount is four: access, source, below it, destination */
	int count;			/* of mounts */
};
bool parse_mounts(int count, char **arguments, struct mounts *mounts);
#define MOUNT_GONE 3	/* exit code: there is no such folder (any more) */
int mount_folders(int count, char **arguments);	/* an exit code */

/* ---- exec.c: the standby child, and what it becomes ---- */

/* A page shared with a child until it execs: how far it came. Programs never see it, for
 * execve drops the mapping. */
struct report {
	uint32_t phase;			/* enum retort_phase; RETORT_PHASE_EXEC: about to execve */
	int32_t error;			/* errno; not 0: gave up in that phase */
	uint64_t started_ns;
};

struct standby {
	pid_t pid;			/* 0: there is none */
	int pidfd;
	int sock;			/* our end of its socketpair */
	int cgroup;			/* for another, should this one be killed; or -1 */
	struct report *report;
};

void standby_init(struct standby *standby);
int standby_make(struct init *in, int cgroup);	/* takes the descriptor; 0 or errno */
void standby_lost(struct standby *standby);	/* it was reaped */
void standby_discard(struct standby *standby);
void handle_prepare(struct init *in, const struct retort_prepare *msg, struct descriptors *fds);
void handle_exec(struct init *in, const void *bytes, size_t length, struct descriptors *fds);

/* ---- step.c: the records of steps ---- */

#define STATE_FREE 0
#define STATE_FAILED 100		/* never started; kept until its FAILED is sent */

struct step {
	uint64_t number;
	int state;			/* enum retort_state, or one of the two above */
	pid_t pid;
	int sock;			/* closes by itself when the child execs; -1 from then on */
	struct report *report;		/* as long as sock */
	uint32_t request;		/* id of the EXEC, for its answer */
	uint32_t phase;			/* of STATE_FAILED */
	int error;
	bool owes_answer;		/* STARTED or FAILED is still to be sent */
	bool owes_exit;			/* EXITED is still to be sent */
	uint32_t flags;
	dev_t stdin_device;
	ino_t stdin_inode;
	int held[RETORT_HELD_MAX];	/* -1: none */
	char *tag;
	uint32_t tag_length;
	int status;
	struct retort_usage usage;
	uint64_t started_ns;
	uint64_t ended_ns;
	uint64_t fed;			/* bytes of input, over all servers */
};

struct step *step_find(struct init *in, uint64_t number);	/* NULL: none of that number */
struct step *step_of_pid(struct init *in, pid_t pid);		/* whose main process is alive */
void step_init(struct step *step);				/* of a fresh struct init */
struct step *step_new(struct init *in);				/* NULL: all are in use */
void step_free(struct step *step);
void step_resolve(struct step *step);	/* its child exec'd, gave up or died: which? */
void handle_release(struct init *in, const struct retort_release *msg);
void handle_drop(struct init *in, const struct retort_drop *msg);
void handle_feed(struct init *in, const struct retort_feed *msg, const struct cursor *input);
void handle_list(struct init *in, const struct retort_list *msg);

/* ---- reap.c: the end of processes ---- */

void reap(struct init *in);
bool is_ending(const struct init *in);		/* a step's leftovers are being killed */
int ending_poll_ms(const struct init *in);	/* -1: SIGCHLD will tell */
void handle_kill(struct init *in, const struct retort_kill *msg);

/* ---- proc.c: looking at other processes ---- */

#define PROC_TASKS_MAX 4096		/* looked at per call: a fork bomb must not hold init up */

struct process {
	pid_t pid, parent, session;
	char state;
};
size_t proc_list(struct process *list, size_t capacity);
void handle_waiting(struct init *in, const struct retort_waiting *msg);

/* ---- files.c: files for the server ---- */

bool files_start(struct init *in, const char *home);
void handle_open(struct init *in, const struct retort_open *msg, struct cursor *rest);
void handle_mkdirs(struct init *in, const struct retort_mkdirs *msg, struct cursor *rest);
void handle_link(struct init *in, const struct retort_link *msg, struct cursor *rest, int file);
void handle_rename(struct init *in, const struct retort_rename *msg, struct cursor *rest);
void handle_unlink(struct init *in, const struct retort_unlink *msg, struct cursor *rest);

/* ---- beneath.c: paths that cannot leave home ---- */

/* All return a descriptor, or -1 and errno. */
int open_beneath(const struct init *in, int root, const char *path, int flags, mode_t mode,
		 uint64_t resolve);
int open_parent(const struct init *in, const char *path, uint64_t resolve,
		const char **name);	/* name: the last component, inside path */
bool are_rules(uint64_t resolve);	/* only RESOLVE_* that a request may ask for */

/* ---- server.c: the connection ---- */

struct outgoing {
	size_t length;			/* 0: nothing waits */
	struct descriptors fds;
	char bytes[RETORT_ANSWER_MAX];
};

void server_accept(struct init *in);
void server_receive(struct init *in);
void server_flush(struct init *in);	/* what is owed and can be sent */
bool server_is_idle(const struct init *in);	/* all sent, so that requests may be read */
void server_lost(struct init *in);
void dispatch(struct init *in, const void *bytes, size_t length, struct descriptors *fds);

void answer(struct init *in, const void *message, size_t length, const int *fds, int fd_count);
void answer_done(struct init *in, uint32_t id, uint32_t count);
void answer_failed(struct init *in, uint32_t id, uint32_t phase, int error);

/* ---- main.c ---- */

struct init {
	int listener;
	int peer;			/* the connected server, or -1 */
	int signals;			/* signalfd: SIGCHLD */
	int home;			/* all paths begin here */
	bool is_pid1;
	bool has_openat2;
	bool is_greeted;		/* the peer said HELLO */
	bool is_blocked;		/* the peer's buffer is full */
	bool is_accept_paused;		/* out of descriptors or memory: try again later */
	bool is_childless;		/* the last wait found no child */
	bool has_killed;		/* since the last step ended; else SIGKILL is the host kernel's */
	struct filter filter;
	struct score score;
	struct rlimit descriptor_limit;	/* as found, for programs; init's own is raised */
	struct standby standby;
	struct step steps[RETORT_STEPS_MAX];
	struct outgoing outgoing;
	_Alignas(8) char incoming[RETORT_MESSAGE_MAX + 1];	/* one more: too long must show */
};

#endif
