/*
 * protocol.h - every message between the server and retort-init.
 *
 * The one definition. docs/init-protocol.md says what the messages mean;
 * src/retort/sandbox/protocol.py mirrors the numbers and offsets, and
 * tests/unit/sandbox/test_protocol.py compiles this file and compares.
 *
 * One datagram of a SOCK_SEQPACKET socket is one message: a struct of this
 * file, then its variable part. Both ends run on one machine, so integers are
 * in host order. Every struct is laid out without implicit padding. A field
 * `reserved` is 0; a request with another value is malformed, so that a later
 * version may give it a meaning.
 *
 * A "string" is bytes without NUL, ended by one NUL.
 */
#ifndef RETORT_PROTOCOL_H
#define RETORT_PROTOCOL_H

#include <stdint.h>

#define RETORT_PROTOCOL_VERSION 2

#define RETORT_MESSAGE_MAX 65536	/* bytes of one request, all included */
#define RETORT_ANSWER_MAX 16384		/* bytes of one answer or event */
#define RETORT_STEPS_MAX 16		/* steps running, or ended and not released */
#define RETORT_LIMITS_MAX 16		/* resource limits of one EXEC */
#define RETORT_TAG_MAX 8192		/* bytes of a step's tag */
#define RETORT_STRINGS_MAX 4096		/* argv entries of one EXEC; as many for envp */
#define RETORT_PATH_MAX 4096		/* bytes of a path, its NUL included */
#define RETORT_DEPTH_MAX 256		/* components of a MKDIRS path */
#define RETORT_HELD_MAX 3		/* descriptors that init keeps for a step */

enum retort_type {
	/* Requests. */
	RETORT_HELLO = 1,
	RETORT_PREPARE = 2,
	RETORT_EXEC = 3,
	RETORT_RELEASE = 4,
	RETORT_DROP = 5,
	RETORT_LIST = 6,
	RETORT_KILL = 7,
	RETORT_WAITING = 8,
	RETORT_OPEN = 9,
	RETORT_MKDIRS = 10,
	RETORT_LINK = 11,
	RETORT_RENAME = 12,
	RETORT_UNLINK = 13,
	RETORT_FEED = 14,
	/* Answers: the id is the request's. */
	RETORT_WELCOME = 65,
	RETORT_PREPARED = 66,
	RETORT_STARTED = 67,
	RETORT_DONE = 68,
	RETORT_FAILED = 69,
	RETORT_STEP = 70,
	RETORT_INPUT = 71,
	RETORT_OPENED = 72,
	/* Events: the id is 0. */
	RETORT_EXITED = 129,
};

/* Where a request failed; goes with an errno. */
enum retort_phase {
	RETORT_PHASE_PROTOCOL = 1,	/* the message makes no sense, or came before HELLO */
	RETORT_PHASE_STEP = 2,		/* no such step, number in use, too many, still ending */
	RETORT_PHASE_STANDBY = 3,	/* the standby child is gone; nothing of the step ran */
	RETORT_PHASE_FORK = 4,		/* no standby child could be made */
	RETORT_PHASE_STDIO = 5,
	RETORT_PHASE_SESSION = 6,	/* the controlling terminal */
	RETORT_PHASE_RLIMIT = 7,
	RETORT_PHASE_CWD = 8,
	RETORT_PHASE_EXEC = 9,
	RETORT_PHASE_OPEN = 10,
	RETORT_PHASE_MKDIRS = 11,
	RETORT_PHASE_LINK = 12,
	RETORT_PHASE_RENAME = 13,
	RETORT_PHASE_UNLINK = 14,
	RETORT_PHASE_KILL = 15,
	RETORT_PHASE_SEND = 16,		/* done, but its descriptors could not be sent */
	RETORT_PHASE_FILTER = 17,	/* the system call filter could not be loaded */
	RETORT_PHASE_FEED = 18,		/* nobody reads the step's input any more, or it has none */
};

/* A step's life as LIST tells it. */
enum retort_state {
	RETORT_STATE_STARTING = 1,	/* its child has not reached execve yet */
	RETORT_STATE_RUNNING = 2,
	RETORT_STATE_ENDING = 3,	/* its main process ended, what it left is being killed */
	RETORT_STATE_ENDED = 4,		/* everything is dead; waits for RELEASE */
};

enum retort_exec_flags {
	RETORT_EXEC_KEEP_BACKGROUND = 1, /* leave alone what outlives the main process */
	RETORT_EXEC_TTY = 2,	/* stdin is a terminal: make it the controlling one */
};

enum retort_scope {
	RETORT_SCOPE_MAIN = 1,		/* the main process */
	RETORT_SCOPE_GROUP = 2,		/* its process group */
	RETORT_SCOPE_EVERYTHING = 3,	/* every process of the sandbox but init */
};

enum retort_features {
	RETORT_FEATURE_PID1 = 1,	/* init is pid 1 of its own pid namespace */
	RETORT_FEATURE_OPENAT2 = 2,	/* paths are resolved by openat2(2), not by the fallback */
	RETORT_FEATURE_FILTER = 4,	/* programs run under a system call filter */
};

struct retort_header {
	uint32_t type;			/* enum retort_type */
	uint32_t id;			/* chosen by the server; an answer repeats it */
};

/* ---- requests ---- */

struct retort_hello {
	struct retort_header header;
	uint32_t version;
	uint32_t reserved;
};

/* Descriptors: none, or a cgroup v2 folder. */
struct retort_prepare {
	struct retort_header header;
	uint32_t flags;			/* 0 */
	uint32_t reserved;
};

/*
 * Then: struct retort_limit[limit_count], tag[tag_length], and strings: cwd,
 * argv[argument_count], envp[environment_count].
 * Descriptors: stdin, stdout, stderr, then up to RETORT_HELD_MAX to keep.
 */
struct retort_exec {
	struct retort_header header;
	uint64_t number;		/* of the step; not 0, not in use */
	uint32_t flags;			/* enum retort_exec_flags */
	int32_t standby;		/* pid inside of the child to use; 0: any, or a new one */
	uint32_t limit_count;
	uint32_t tag_length;
	uint32_t argument_count;	/* at least 1; argv[0] is the path to execute */
	uint32_t environment_count;
};

struct retort_limit {
	uint32_t resource;		/* RLIMIT_* */
	uint32_t reserved;
	uint64_t soft;			/* UINT64_MAX: no limit */
	uint64_t hard;
};

struct retort_release {
	struct retort_header header;
	uint64_t number;
};

struct retort_drop {
	struct retort_header header;
	uint64_t number;
	uint32_t mask;			/* bit i: close the i-th kept descriptor */
	uint32_t reserved;
};

struct retort_list {
	struct retort_header header;
	uint32_t index;
	uint32_t reserved;
};

struct retort_kill {
	struct retort_header header;
	uint64_t number;		/* 0 (with RETORT_SCOPE_EVERYTHING): whatever runs */
	int32_t signal;			/* 0: only ask whether somebody is there */
	uint32_t scope;			/* enum retort_scope */
};

struct retort_waiting {
	struct retort_header header;
	uint64_t number;
};

/* Then: the input, at least one byte. */
struct retort_feed {
	struct retort_header header;
	uint64_t number;
};

/* Then: the path. */
struct retort_open {
	struct retort_header header;
	uint32_t flags;			/* O_* */
	uint32_t mode;
	uint64_t resolve;		/* RESOLVE_* to add */
};

/* Then: the path. */
struct retort_mkdirs {
	struct retort_header header;
	uint32_t mode;
	uint32_t reserved;
	uint64_t resolve;
};

/* Then: the path. Descriptor: a regular file without a name (O_TMPFILE). */
struct retort_link {
	struct retort_header header;
	uint64_t resolve;
};

/* Then: the old path, the new path. */
struct retort_rename {
	struct retort_header header;
	uint32_t flags;			/* RENAME_NOREPLACE or RENAME_EXCHANGE */
	uint32_t reserved;
	uint64_t resolve;
};

/* Then: the path. */
struct retort_unlink {
	struct retort_header header;
	uint32_t flags;			/* AT_REMOVEDIR */
	uint32_t reserved;
	uint64_t resolve;
};

/* ---- answers ---- */

/* Descriptor: a pidfd of init. */
struct retort_welcome {
	struct retort_header header;
	uint32_t version;
	uint32_t running;		/* steps that have not ended */
	uint32_t unreleased;		/* steps that have */
	uint32_t features;		/* enum retort_features */
};

/* Descriptor: a pidfd of the standby child. */
struct retort_prepared {
	struct retort_header header;
	int32_t pid;			/* as seen inside */
	uint32_t reserved;
};

struct retort_started {
	struct retort_header header;
	uint64_t number;
	int32_t pid;			/* as seen inside; also its process group and session */
	uint32_t reserved;
};

struct retort_done {
	struct retort_header header;
	uint32_t count;			/* MKDIRS: directories made; FEED: bytes; else 0 */
	uint32_t reserved;
};

struct retort_failed {
	struct retort_header header;
	uint32_t phase;			/* enum retort_phase */
	int32_t error;			/* errno, positive */
};

/* getrusage(2) of a main process and the children that it waited for. */
struct retort_usage {
	uint64_t user_us;
	uint64_t system_us;
	uint64_t max_rss_kib;
	uint64_t minor_faults;
	uint64_t major_faults;
	uint64_t in_blocks;		/* of 512 bytes */
	uint64_t out_blocks;
	uint64_t voluntary_switches;
	uint64_t involuntary_switches;
};

/* Then: tag[tag_length]. Descriptors: one per bit of held_mask, lowest first. */
struct retort_step {
	struct retort_header header;
	uint64_t number;
	uint32_t state;			/* enum retort_state */
	int32_t pid;
	int32_t wait_status;		/* 0 before ENDING, as are usage and ended_ns */
	uint32_t flags;
	uint32_t held_mask;
	uint32_t tag_length;
	struct retort_usage usage;
	uint64_t started_ns;
	uint64_t ended_ns;
	uint64_t fed;			/* bytes of input that FEEDs wrote */
};

struct retort_input {
	struct retort_header header;
	uint32_t waiting;		/* 1: something sleeps in read(2) on the step's stdin */
	uint32_t reserved;
};

/* Descriptor: what was opened. */
struct retort_opened {
	struct retort_header header;
};

/* ---- events ---- */

struct retort_exited {
	struct retort_header header;	/* id 0 */
	uint64_t number;
	int32_t wait_status;		/* wait(2) */
	uint32_t reserved;
	struct retort_usage usage;
	uint64_t started_ns;		/* CLOCK_MONOTONIC, just before execve */
	uint64_t ended_ns;		/* CLOCK_MONOTONIC, when the main process was reaped */
};

#endif
